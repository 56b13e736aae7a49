"""Tests of LLMLingua among a reader's contexts, with a recorded example: `python eval/test_peer.py` or pytest."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from data.artifacts import InputError
from data.testing.toy import check_refusal
from eval import evaluate_reader
from eval.contexts import Passage
from eval.peer import Peer, align, left_of
from eval.reader import Reader
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer

RECORDED = Path(__file__).with_name("llmlingua_recorded.jsonl")
# Of the package's interface what peer_worker.py uses. It says what LLMLingua itself said at the nearest recorded rate below, of
# other texts the head, and reads with the model that it is given.
STAND_IN = """
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ROWS = [json.loads(line) for line in open({recorded!r}, encoding="utf-8")][1:]
class PromptCompressor:
    def __init__(self, model_name, device_map):
        print("noise of a library")
        self.tokenizer, self.model = (of.from_pretrained(model_name) for of in (AutoTokenizer, AutoModelForCausalLM))
    def get_ppl(self, text, granularity="sentence", ids=None, mask=None, past_key_values=None, return_kv=False, end=None):
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"] if ids is None else ids
        with torch.no_grad():
            loss = -self.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return loss.mean() if granularity == "sentence" else (loss, None)
    def compress_prompt(self, text, rate, iterative_size, use_context_level_filter):
        {fault}
        assert not use_context_level_filter
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        assert iterative_size == ids.shape[1]
        loss, _ = self.get_ppl("", "token", ids, torch.ones_like(ids), past_key_values=None, return_kv=True, end=None)
        method = "LLMLingua" + ", scores moved" * bool(torch.isinf(loss[0]))
        rows = [row for row in ROWS if (row["text"], row["method"]) == (text, method)]
        below = [row for row in rows if row["rate"] <= rate]
        head = self.tokenizer.decode(ids[0, : int(rate * ids.shape[1])])
        sent = max(below, key=lambda row: row["rate"])["sent"] if below else head
        return {{"compressed_prompt": sent}}
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A tiny random GPT-2 that reads real text, and where it is saved."""
    set_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("reader"), load_tokenizer(BASE_MODEL)
    sizes = dict(vocab_size=50_258, n_positions=512, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reader = Reader(model, tokenizer, batch_size=4)
    reader.folder = folder
    return reader


@pytest.fixture(scope="module")
def passages(reader):
    rows = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    return [Passage(text, reader) for text in dict.fromkeys(row["text"] for row in rows[1:])]


def environment(folder, fault="", recorded=RECORDED):
    """An environment with the stand-in: the real worker runs in it."""
    for name in ("bin", "lib/llmlingua-0.2.2.dist-info"):
        (folder / name).mkdir(parents=True)
    (folder / "lib/llmlingua-0.2.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: llmlingua\nVersion: 0.2.2\n")
    (folder / "lib/tiktoken.py").write_text("")
    (folder / "lib/llmlingua.py").write_text(STAND_IN.format(recorded=str(recorded), fault=fault))
    (folder / "bin/python").write_text(f'#!/bin/sh\nPYTHONPATH="{folder}/lib" exec "{sys.executable}" "$@"\n')
    (folder / "bin/python").chmod(0o755)
    return folder


def test_llmlingua_live_and_as_recorded(reader, passages, tmp_path, monkeypatch, capsys):
    """The whole evaluation: what the real package sent reaches the reader, within its budget, and comes again from the record."""
    monkeypatch.setattr(evaluate_reader, "SAMPLES", 100)
    rows = [{"context": p.text, "question": "Who?", "answer": p.text.split()[3]} for p in passages]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(evaluate_reader, "split_of", lambda context: "report")
    words = ["--reader", reader.folder, "--questions", tmp_path / "questions.jsonl", "--methods", "head", "--device", "cpu"]
    results = []
    for peer in (environment(tmp_path / "live"), tmp_path / "0/peer.jsonl"):
        folder = tmp_path / str(len(results))
        more = ["--peer", peer, "--output_dir", folder, "--quiet", "--budgets", 0.8, 0.6]
        evaluate_reader.main([str(word) for word in [*words, *more]])
        results.append(json.loads((folder / "reader_results.json").read_text()))
    assert results[0]["results"] == results[1]["results"]
    cells = {(r["method"], r["budget"]): r for r in results[0]["results"]}
    published, moved = (cells[name, 0.8] for name in ("LLMLingua", "LLMLingua, scores moved"))
    assert published["nats"]["value"] != moved["nats"]["value"]
    for (name, budget), cell in cells.items():
        assert cell["tokens"] <= (budget or 1) and (not name.startswith("LLM") or cell["tokens"] > budget - 0.2)
    # The record's are whole tokens of another tokenizer, hence not of this reader's; the stand-in's heads of older parts are.
    assert results[0]["peer"]["aligned"] == {"LLMLingua": 0.5, "LLMLingua, scores moved": 0.5}
    assert results[0]["peer"]["versions"]["llmlingua"] == "0.2.2"
    sent = {json.loads(line).get("sent") for line in (tmp_path / "0/peer.jsonl").read_text().splitlines()}
    real = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()[1:]]
    assert {row["sent"] for row in real} <= sent, "what the real package sent"
    assert "LLMLingua, scores moved" in capsys.readouterr().out


def test_what_is_sent_is_found_in_its_passage(reader, passages):
    """By masks over the reader's tokens that leave it, exactly; other words, or these in another order, are none."""
    rng = np.random.default_rng(0)
    rare = "as Greek Ῥῆνος (Rhēnos), 35 ° 47 ′ 🙂 Ῥῆ"  # parts of two characters may make a third one
    for text in [rare, *(p.text for p in passages)]:
        ids = np.array(reader.encode(text))
        for keep in (0.2, 0.5, 0.9):
            for _ in range(10):
                sent = reader.tokenizer.decode(ids[rng.random(len(ids)) < keep])
                mask = align(reader, text, sent)
                assert left_of(text, sent) and (text == rare or reader.tokenizer.decode(ids[mask]) == sent)
    assert align(reader, "a b a c", "a c").sum() == 2 and align(reader, "a b c", "").sum() == 0
    assert align(reader, "one two", "two one") is None and not left_of("one two", "two one")
    assert align(reader, "somewhere", "smwhr") is None and left_of("somewhere", "smwhr"), "letters, but no tokens"


def rows_of(reader, passages, budget):
    ids = reader.encode(passages[0].text)
    header = {"versions": {}, "text": passages[0].text, "nats": reader.nats([(ids[:1], ids[1:])], "")[0] / (len(ids) - 1)}
    of = lambda p: {"text": p.text, "budget": int(budget * p.length), "method": "LLMLingua", "rate": 0.5, "sent": p.text[:40]}
    return [header, *map(of, passages)]


BAD = [
    (lambda rows: rows[2].update(sent=rows[2]["text"]), r"expected at most \d+ tokens of the reader, found"),
    (lambda rows: rows[2].update(sent="quite other words"), "found other words: 'quite other words'"),
    (lambda rows: rows.pop(), "1 texts at a budget are missing, of 2"),
    (lambda rows: rows[0].update(nats=rows[0]["nats"] * 1.1), "expected .* nats per token of its text, as by --reader"),
    (lambda rows: rows[1].pop("sent"), "expected the rows of peer_worker.py, found: "),
    (lambda rows: rows.clear(), "expected the rows of peer_worker.py"),
]


@pytest.mark.parametrize("spoil, expect", [(lambda rows: None, None), *BAD])
def test_a_record_is_not_believed(reader, passages, tmp_path, spoil, expect):
    rows = rows_of(reader, passages, 0.5)
    spoil(rows)
    (tmp_path / "peer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    peer = lambda: Peer(str(tmp_path / "peer.jsonl"), reader, tmp_path, passages, [0.5])
    if expect is None:
        sent = passages[0].text[:40].strip()
        assert peer().contexts(passages, [0.5])["LLMLingua", 0.5][0][0] == (sent, reader.count([sent])[0])
        return
    with pytest.raises(InputError, match=expect):
        peer()


def test_no_environment_and_one_that_fails_end_in_one_line(reader, passages, tmp_path):
    words = ["--reader", reader.folder, "--methods", "head", "--num_questions", 1, "--output_dir", tmp_path, "--device", "cpu"]
    expect = ["error: --peer", "found none; install it with: python3 -m venv venv-llmlingua", "llmlingua==0.2.2"]
    check_refusal("eval/evaluate_reader.py", *words, "--peer", tmp_path / "nowhere", expect=expect)
    broken = environment(tmp_path / "broken", fault="raise IndexError('list index out of range')")
    with pytest.raises(InputError, match="ended with: IndexError: list index out of range; versions that work: python3"):
        Peer(str(broken), reader, tmp_path, passages, [0.5])
    assert not (tmp_path / "peer.jsonl").exists()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
