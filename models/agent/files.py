"""An agent on the disk: trained parameters as safetensors, the rest as JSON. Nothing that is opened is run.

`config.json` and `model.safetensors` lie in a directory, as the Hugging Face hub has them, or in one file that ends in .zip.
What is the reconstructor's is not among them: the config names it by path and SHA-256, and another one is refused. Its
`reconstructor` is the agent's receiver, which restores what is sent, and by which training was paid; its `reader`, if there is
one, what the agent reads with: without it, that is the receiver, too. An agent that was taught what words are worth to a language
model has `worth.safetensors` beside them, in a directory.

    policy = load_policy("models/agent/released")
    TrainedAgent.from_pretrained("models/agent/released").push_to_hub("somebody/an-agent")
"""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError

from data.artifacts import InputError, check_shape, plain_json, reason_of, sha256_of, written_aside
from data.shapes import ANY_KEY, DIGEST, FLAG, POSITIVE, TEXT, among, beginning, count, optional
from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.policy import observation_space
from models.agent.reader import Reader
from models.agent.worth import WORTH, load_worth
from models.reconstructor.causal_lm import read_record
from models.reconstructor.gaps import GAP_HEAD, GAPS
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import locate
from models.reconstructor.words import DECIDED

SCHEMA = "rltc.agent/2"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KNOWN_BY = {
    "sha256": "SHA-256", "gap_head": "SHA-256 of the gap head", "config": "SHA-256 of config.json", "attention": "attention",
}
OLDER = {"gaps": "told", "unit": "token", "supervised": False}  # what agents are that don't say it
SIZES = ("embedding_dim", "width", "layers", "heads")
NAMED = {"path": TEXT, "sha256": DIGEST, "gap_head?": optional(DIGEST), "config?": DIGEST, "attention?": TEXT}  # a reconstructor
SHAPE = {
    "args": {"seed": count()}, "reconstructor": NAMED, "reader?": NAMED, "tokenizer_fingerprint": TEXT, "max_length": count(1),
    "sizes": dict.fromkeys(SIZES, count(1)), "blocks": count(1), "critic_only": FLAG, "prices": (POSITIVE, POSITIVE),
    "gaps": among(*GAPS), "unit": among(*DECIDED), "supervised": FLAG, "weights?": {ANY_KEY: TEXT},
}
RELEASED = "models/agent/released"  # relative to the repository
# What opening a file can raise that is no agent, or half of one.
UNREADABLE = (OSError, EOFError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError)


def pack(policy, config, worth=None):
    """{file name: bytes} of an agent, the config last, which has the SHA-256 of the others.

    `config`: a JSON-able dict of the schema SCHEMA; `worth`: its Worth, if that goes with it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.own_state().items()}
    tensors["common_tokens"] = policy.reader.common.cpu()
    files = {WEIGHTS: safetensors.torch.save(tensors), **({} if worth is None else {WORTH: worth.pack()})}
    config = {**config, "weights": {name: digest_of(content) for name, content in files.items()}}
    written = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return {**files, CONFIG: written.encode(errors="backslashreplace")}


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


def save_agent(policy, config, path):
    """Write an agent's file, which ends in .zip, whole or not at all."""
    with written_aside(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as file:
            for name, content in pack(policy, config).items():
                file.writestr(name, content)


def read_agent(path):
    """The config and the tensors of an agent at `path`. Raises FileNotFoundError, or InputError if it is no agent."""
    path = Path(locate(path))
    remedy = f"name one, such as {RELEASED}, or train one with: python rl/train.py"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; expected an agent; {remedy}")
    try:
        if path.is_dir():
            there = (CONFIG, WEIGHTS, WORTH) if (path / WORTH).is_file() else (CONFIG, WEIGHTS)
            parts = {name: (path / name).read_bytes() for name in there}
        else:
            with zipfile.ZipFile(path) as file:
                parts = {name: file.read(name) for name in (CONFIG, WEIGHTS)}
        tensors = safetensors.torch.load(parts[WEIGHTS])
    except UNREADABLE as error:
        reason = "not both of them" if isinstance(error, (FileNotFoundError, KeyError)) else reason_of(error)
        raise InputError(
            f"{path}: expected an agent, {CONFIG} and {WEIGHTS} in a directory or a .zip, found: {reason}; {remedy}"
        ) from None
    config = plain_json(f"{path}: expected an agent, but its {CONFIG}", parts[CONFIG], remedy)
    found = config.get("schema") if isinstance(config, dict) else type(config).__name__
    if found != SCHEMA:
        raise InputError(f"{path}: expected an agent of schema '{SCHEMA}', found {beginning(found)}; {remedy}")
    config = OLDER | config
    check_shape(path, config, SHAPE, remedy)
    if config["sizes"]["width"] % config["sizes"]["heads"]:
        raise InputError(f"{path}: sizes: expected a width that is a multiple of the heads, found {config['sizes']}; {remedy}")
    check_parts(path, config, parts)
    return config, tensors


def check_parts(path, config, parts):
    """Raises InputError unless the files of an agent, {name: bytes}, are those that its config has the SHA-256 of, if any."""
    named = config.get("weights", {})
    for name in named and {**named, **parts}.keys() - {CONFIG}:
        if name not in parts or named.get(name) != digest_of(parts[name]):
            expected = f"expected {name} of the agent that {CONFIG} describes"
            found = "none" if name not in parts else "another one"
            raise InputError(f"{path}: {expected}, found {found}; get its files anew, all of one agent, or train it anew")


def identity(directory, gaps):
    """What an agent's file says of its reconstructor beside the path: the SHA-256 of its weights, of its `config`, and of its
    `gap_head` where it finds gaps; and the `attention` that it reads with."""
    directory = Path(directory)
    head = directory / GAP_HEAD
    found = {"gap_head": sha256_of(head) if head.is_file() else None} if gaps == "found" else {}
    read = {"config": sha256_of(directory / CONFIG), "attention": read_record(directory, {"attention": TEXT})["attention"]}
    return {"sha256": sha256_of(directory), **found, **read}


def check_reconstructor(named, path, reconstructor):
    """Raises InputError unless a loaded reconstructor is the one that the agent at `path` was trained with, as `named`.

    What an older agent does not say of it is not known.
    """
    if found := differing(named, reconstructor):
        name, digest = found
        raise InputError(
            f"{path}: expected the reconstructor that it was trained with ({named['path']}, {KNOWN_BY[name]} "
            f"{str(named[name])[:16]}…), found {str(digest)[:16]}… in {reconstructor.directory}; bring that one back, "
            "or train anew"
        )


def differing(named, reconstructor):
    """In what a loaded reconstructor is another one than `named`: (key of its identity, what it has); None if it is that one."""
    ours = identity(reconstructor.directory, "found" if "gap_head" in named else "told")
    return next(((name, found) for name, found in ours.items() if named.get(name, found) != found), None)


def common_tokens(tensors, vocab_size, path):
    """The list of common tokens of the agent at `path`. Raises InputError if it has none for this vocabulary."""
    common = tensors.get("common_tokens", torch.zeros(0))
    if common.dtype != torch.int64 or common.ndim != 1 or not len(common) or common.min() < 0 or common.max() >= vocab_size:
        raise InputError(f"{path}: expected common_tokens, ids from 0 to {vocab_size - 1}, found others or none; train it anew")
    return common


def load_weights(policy, tensors, path):
    """Give a policy the weights of the agent or checkpoint at `path`. Raises InputError if they are another network's."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != "common_tokens"}
    own, theirs = ({name: tensor.shape for name, tensor in some.items()} for some in (policy.own_state(), tensors))
    if differing := [name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)]:
        raise InputError(
            f"{path}: expected the weights of a network with {', '.join(f'{k} {v}' for k, v in policy.config['sizes'].items())}, "
            f"found others at {min(differing)}; give the flags and the data that it was trained with"
        )
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: expected finite weights, found NaN or infinity; train it anew with: python rl/train.py")
    policy.load_state_dict(tensors, strict=False)


def load_policy(path, device="cpu", reconstructor=None):
    """The policy of an agent, a directory or a .zip, ready to decide; `policy.config` is its config.

    `reconstructor`: its receiver, if it is loaded already; the policy then goes to its device. An agent with a reader of its own
    needs none to decide: `load_receiver`. Raises FileNotFoundError if there is no such agent or reader, InputError if it is none
    or was trained with another reconstructor.
    """
    config, tensors = read_agent(path)
    sizes = {name: config["sizes"][name] for name in SIZES}
    if reconstructor is not None:
        check_reconstructor(config["reconstructor"], path, reconstructor)
        device = reconstructor.device
    if reconstructor is None or config.get("reader"):
        named = config.get("reader") or config["reconstructor"]
        reconstructor = Reconstructor.load(named["path"], device, config["gaps"])
        check_reconstructor(named, path, reconstructor)
    if config["tokenizer_fingerprint"] != reconstructor.fingerprint:
        expected, found = f"expected its tokenizer {config['tokenizer_fingerprint']}", reconstructor.fingerprint
        raise InputError(f"{path}: {expected}, found {found} in {reconstructor.directory}; bring that one back, or train anew")
    common, found = common_tokens(tensors, reconstructor.vocab_size, path), config["gaps"] == "found"
    reader = Reader(reconstructor, common, config["blocks"], found, config["unit"])
    policy = TokenCompressionPolicy(
        observation_space(reconstructor.vocab_size, 1, config["prices"][1]), spaces.Box(0.0, 1.0, (1,), np.float32),
        lambda _: 0.0, prices=config["prices"], critic_only=config["critic_only"], supervised=config["supervised"],
        features_extractor_kwargs={"reader": reader, **sizes},
    ).to(reconstructor.device)
    policy.config, policy.tokenizer_fingerprint = config, config["tokenizer_fingerprint"]
    load_weights(policy, tensors, path)
    reader.worth = load_worth(locate(path), reader.states)
    policy.set_training_mode(False)
    return policy


def needs(config, flag):
    """{what: directory} of the reconstructors that an agent needs, of its config; `flag` is what named the agent."""
    return {f"{flag}'s {part}": locate(config[part]["path"]) for part in ("reconstructor", "reader") if config.get(part)}


def check_place(folder):
    """Raises InputError if an agent can't be saved to `folder`: there is a config.json of something else."""
    if (path := Path(folder) / CONFIG).is_file() and SCHEMA.encode() not in path.read_bytes():
        found = f"found {CONFIG} of something else, which would be overwritten"
        raise InputError(f"--output_dir {folder}: expected none or an agent, {found}; choose another one")


def load_receiver(policy):
    """The reconstructor that restores what a policy of `load_policy` sends, on its device: what it reads with, unless it has a
    reader of its own. Raises FileNotFoundError or InputError."""
    config = policy.config
    if not config.get("reader"):
        return policy.reader.reconstructor
    receiver = Reconstructor.load(config["reconstructor"]["path"], policy.device, config["gaps"])
    check_reconstructor(config["reconstructor"], "the agent", receiver)
    return receiver


class TrainedAgent(ModelHubMixin, library_name="rl-token-compression", tags=["text-compression", "reinforcement-learning"]):
    """An agent with `from_pretrained`, `save_pretrained` and `push_to_hub`, as the Hugging Face hub knows models."""

    def __init__(self, policy):
        self.policy = policy

    def _save_pretrained(self, save_directory):
        folder, parts = Path(save_directory), pack(self.policy, self.policy.config, self.policy.reader.worth)
        for name in (CONFIG, WORTH):  # while its files get their places it is no agent
            (folder / name).unlink(missing_ok=True)
        for name, content in parts.items():
            with written_aside(folder / name) as temporary:
                temporary.write_bytes(content)

    @classmethod
    def _from_pretrained(cls, *, model_id, device="cpu", reconstructor=None, **of_the_hub):
        if not Path(locate(model_id)).is_dir():
            model_id = snapshot_download(model_id, allow_patterns=[CONFIG, WEIGHTS, WORTH], **of_the_hub)
        return cls(load_policy(model_id, device, reconstructor))
