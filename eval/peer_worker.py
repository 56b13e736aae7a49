"""What LLMLingua makes of texts, in an environment of its own: nothing of this repository is imported here.

    venv-llmlingua/bin/python eval/peer_worker.py FOLDER

`FOLDER/model` is a causal LM in Hugging Face form, `FOLDER/texts.jsonl` has rows of `text` and `budget`, in its tokens. On
stdout, JSON Lines: versions, a text and its nats per token, then each row with its `method`, what is `sent`, as much as
the budget holds, and the `rate` that was asked for. `eval/peer.py` starts it.

LLMLingua 0.2.2 (Jiang et al. 2023), its token-level step alone. It hits a rate only roughly, so the rate is searched by text.
Deviations: 1. `iterative_size` is a text's length: with the default of 200 tokens a shorter text, and the last segment of a
longer one, stay whole (microsoft/LLMLingua issues 196 and 73); 2. what a text's only reading gave is remembered while its rate
is searched; 3. OpenAI's tokenizer, a download that only its saving in dollars needs, counts words; 4. the package keeps a token
if the one *behind* it is surprising, for `loss[i]` is about token i + 1: the method MOVED is with each score at its own token.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import tiktoken
import torch

STEPS = 12  # halvings of the range of rates: to 1 / 4096, less than a token of any passage
PUBLISHED, MOVED = "LLMLingua", "LLMLingua, scores moved"


class Worker:
    """A PromptCompressor that reads the same ids once."""

    def __init__(self, folder):
        tiktoken.encoding_for_model = lambda name: SimpleNamespace(encode=str.split)
        from llmlingua import PromptCompressor

        self.compressor = PromptCompressor(model_name=str(folder / "model"), device_map="cpu")
        self.read, self.compressor.get_ppl = self.compressor.get_ppl, self.losses
        self.method, self.ids, self.found = PUBLISHED, None, None

    def losses(self, text, granularity, ids, mask, past_key_values=None, **more):
        """The package's own, of its only segment."""
        if self.ids is None or not torch.equal(ids, self.ids):
            self.ids, self.found = ids, self.read(text, granularity, ids, mask, **more)
        loss, cache = self.found
        moved = self.method == MOVED
        return torch.cat([loss.new_full((1,), torch.inf), loss[:-1]]) if moved else loss.clone(), cache

    def count(self, text):
        return len(self.compressor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def compress(self, text, budget):
        """(rate, what is sent) of the highest rate at which a text costs at most `budget` tokens; rate 0: none does."""
        low, high, best, length = 0.0, 1.0, "", self.count(text)
        for _ in range(STEPS):
            rate = (low + high) / 2
            found = self.compressor.compress_prompt(text, rate=rate, iterative_size=length, use_context_level_filter=False)
            sent = found["compressed_prompt"]
            low, high, best = (rate, high, sent) if self.count(sent) <= budget else (low, rate, best)
        return low, best


def main():
    folder, out = Path(sys.argv[1]), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    worker = Worker(folder)
    versions = {name: version(name) for name in ("llmlingua", "torch", "transformers")}
    header = {"versions": versions, "text": rows[0]["text"], "nats": float(worker.read(rows[0]["text"]))}
    print(json.dumps(header), file=out, flush=True)
    for row in rows:
        for worker.method in (PUBLISHED, MOVED):
            rate, sent = worker.compress(**row)
            print(json.dumps({**row, "method": worker.method, "rate": rate, "sent": sent}), file=out, flush=True)


if __name__ == "__main__":
    main()
