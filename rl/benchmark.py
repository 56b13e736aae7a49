"""Measure what deciding costs beside a language-model pass, alone and in batches, and training beside one environment at a time.

    python rl/benchmark.py --data_path data/processed/processed_data.json --reconstructor_path models/reconstructor/fine-tuned

Deciding: a policy of the default size, at a λ and at a keep ratio, for which a λ is looked for, over the same texts as one
causal pass, with logits at every token, of the embedded base and of a GPT-2 with 124 M parameters (random weights; they don't
change the time). The policy is an untrained one, whose draft hides every token, the dearest that it can do. Episodes: the
same policy and the environment's judgement, in batches of texts and with one TokenCompressionEnv. Training: token decisions
per second, rollouts and updates, of the same TokenPPO on TokenCompressionVecEnv and on one TokenCompressionEnv under
Stable-Baselines3's DummyVecEnv. One decision is about a word. In turns, so that a noisy machine is noisy for all. Writes nothing.
Texts of any length: eval/benchmark.py.
"""

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import SEED, Parser, bounded, run
from data.sequences import load_sequences, pad_batch
from eval.methods import CausalSurprisal
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.gaps import GAPS
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.tokenizer import BASE_MODEL
from models.reconstructor.words import DECIDED
from rl import train
from rl.env import TokenCompressionEnv, TokenCompressionVecEnv

EPISODES = 16  # texts that a turn of small batches decides at least


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"),
        help="directory written by models/reconstructor/train_cpu.py or train_gpu.py, or models/reconstructor/base")
    add("--base_model", default=BASE_MODEL, help="causal LM to compare deciding with, beside a GPT-2 with 124 M parameters")
    add("--gaps", choices=GAPS, default=GAPS[0], help="whether the receiver has to find where tokens are missing, or is told")
    add("--max_length", type=bounded(int, 2, 10**6), default=128, help="tokens per text, longer ones are cut into several")
    add("--texts", type=bounded(int, 1, 10**6), default=16, help="texts per turn of deciding")
    add("--batches", type=bounded(int, 1, 100_000), nargs="+", default=[1, 64], help="texts per batch of episodes")
    add("--n_envs", type=bounded(int, 2, 20_000), default=64, help="texts per rollout; up to 64 are judged in one call")
    add("--turns", type=bounded(int, 1, 10**6), default=5, help="turns of each")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds texts and weights")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def report(title, unit, speeds, ours):
    """Print the medians of {name: speeds} and the paired ratios of `ours` to the others."""
    print(title)
    for name, values in speeds.items():
        ratios = np.array(speeds[ours]) / np.array(values)
        spread = f"(from {ratios.min():.1f} to {ratios.max():.1f})"
        beside = "" if name == ours else f"   {ours} is {np.median(ratios):.1f} times as fast {spread}"
        print(f"  {name:38s}{np.median(values):12,.0f} {unit} (from {min(values):,.0f} to {max(values):,.0f}){beside}")


def in_turns(ways, turns, device, quiet):
    """{name: [tokens per second, …]} of functions that return how many tokens they dealt with; a first turn is not timed."""
    speeds = {name: [] for name in ways}
    for turn in tqdm(range(turns + 1), unit="turn", disable=quiet):
        for name, way in ways.items():
            start = time.perf_counter()
            tokens = way()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                speeds[name].append(tokens / (time.perf_counter() - start))
    return speeds


def trainer(env, args, texts, device):
    """An agent of the default settings, and a function that trains it on one more rollout and returns its tokens."""
    settings = train.parse_args(["--n_steps", str(args.n_envs), "--seed", str(args.seed), "--gaps", args.gaps])
    agent = train.build_agent(settings, env, texts, device)

    def one_rollout():
        agent.learn(args.n_envs, reset_num_timesteps=False)
        return int(agent.rollout_buffer.all().valid.sum())

    return agent, one_rollout


def deciding(policy, args, texts, reconstructor, device):
    """{name: function} of deciding the same texts and of causal passes over them."""
    chosen = np.random.default_rng(args.seed).permutation(len(texts))[: args.texts]
    ids, valid = pad_batch([texts[int(i)] for i in chosen], 0)
    large = GPT2Config(n_positions=max(1024, ids.shape[1] + 1), vocab_size=reconstructor.vocab_size)
    models = {"base model": load_causal_lm(args.base_model), "GPT-2 with 124 M": GPT2LMHeadModel(large)}

    def causal_pass(model):
        model = model.to(device).eval()
        return lambda: CausalSurprisal(model, reconstructor.bos_id).scores(ids, valid, None)

    ways = {"agent": lambda: policy.keep_probability(ids, valid, 1.5)}
    ways["agent at a keep ratio"] = lambda: policy.keep_probability_at(ids, valid, 0.7)
    ways |= {f"causal pass, {name}": causal_pass(model) for name, model in models.items()}

    def counted(way):
        way()
        return int(valid.sum())

    return {name: lambda way=way: counted(way) for name, way in ways.items()}


def episodes(agent, args, texts, reconstructor, length):
    """{name: function} that decide texts and have them judged: in batches, and with one environment."""

    def in_batches(size):
        env = TokenCompressionVecEnv(texts, reconstructor, length, size, unit=DECIDED[0])
        state = {"observation": env.reset()}

        def some():
            tokens = 0
            for _ in range(max(1, EPISODES // size)):
                tokens += int(state["observation"]["valid"].sum())
                state["observation"], *_ = env.step(agent.predict(state["observation"])[0])
            return tokens

        return some

    one = TokenCompressionEnv(texts, reconstructor, length, unit=DECIDED[0])

    def one_by_one():
        tokens = 0
        for _ in range(EPISODES):
            observation, _ = one.reset()
            one.step(agent.predict(observation)[0])
            tokens += int(observation["valid"].sum())
        return tokens

    return {"one environment": one_by_one, **{f"batches of {size}": in_batches(size) for size in args.batches}}


def peak_memory(device):
    """The largest memory so far, in words: of the card, or of this process."""
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB on {torch.cuda.get_device_name()}"
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20:,.0f} MiB of the process"


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    torch.manual_seed(args.seed)
    reconstructor = Reconstructor.load(args.reconstructor_path, device, args.gaps)
    length = min(args.max_length, reconstructor.max_length)
    texts = load_sequences(args.data_path, reconstructor.fingerprint, length)
    many = TokenCompressionVecEnv(texts, reconstructor, length, train.environments(args.n_envs), unit=DECIDED[0])
    agent, train_many = trainer(many, args, texts, device)
    one = DummyVecEnv([lambda: TokenCompressionEnv(texts, reconstructor, length, unit=DECIDED[0])])
    one.judge = one.envs[0].judge
    _, train_one = trainer(one, args, texts, device)

    ways = deciding(agent.policy, args, texts, reconstructor, device)
    title = f"deciding, {args.texts} texts of up to {length} tokens"
    report(title, "tokens/s", in_turns(ways, args.turns, device, args.quiet), "agent")
    ways = episodes(agent, args, texts, reconstructor, length)
    title = f"episodes, decided and judged, texts of up to {length} tokens"
    report(title, "decisions/s", in_turns(ways, args.turns, device, args.quiet), f"batches of {max(args.batches)}")
    ways = {"TokenCompressionVecEnv": train_many, "one environment under DummyVecEnv": train_one}
    title = f"training, rollouts of {args.n_envs} texts of up to {length} tokens and their updates"
    report(title, "decisions/s", in_turns(ways, args.turns, device, args.quiet), "TokenCompressionVecEnv")
    print(f"peak memory {peak_memory(device)}")


if __name__ == "__main__":
    run(main)
