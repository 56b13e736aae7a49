"""Tests of data preparation: `python data/test_prepare.py` or pytest."""

import functools
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from data import benchmark, prepare
from data.artifacts import InputError, read_json, write_json
from data.duplicates import shingles
from data.partial import FOLDER, Partial
from data.scratch import make_scratch, remove_scratch
from data.sequences import CACHE, SCHEMA, SPLITS, load_sequences, pad_batch
from data.testing.toy import REPOSITORY, check_refusal, write_base
from data.testing.hub import COMMIT, toy_hub, write_shards
from models.reconstructor.tokenizer import BASE_MODEL, MASK_TOKEN, fingerprint, load_tokenizer

HOSTILE = "  leading\r\nnaïve café 🙂 ﷽ \u2028 \x00 don't <|endoftext|> <|mask|>\t\ttabs   "


load_once = functools.cache(load_tokenizer)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE_MODEL)


@pytest.fixture(autouse=True)
def same_tokenizer(monkeypatch):
    """Loading the tokenizer takes longer than what most of these tests do with it."""
    monkeypatch.setattr(prepare, "load_tokenizer", load_once)


def write_texts(folder, count=30):
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02d}.txt").write_text(f"Document {i}. " + f"The number {i * 7919} follows {HOSTILE}. " * 12, encoding="utf-8")
    shutil.copy(folder / "03.txt", folder / "copy.txt")
    (folder / "blank.txt").write_text(" \n", encoding="utf-8")
    return folder


def prepared(tmp_path, *words, source="text"):
    main = ["--output_dir", str(tmp_path / "out"), "--source", source, "--quiet", *map(str, words)]
    prepare.main(main)
    return tmp_path / "out"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_splits_hold_every_document_once_and_lose_no_text(tmp_path, tokenizer):
    folder = write_texts(tmp_path / "texts")
    out = prepared(tmp_path, "--input", folder, "--max_length", 40, "--min_length", 1)
    info = read_json(out / "dataset_info.json", SCHEMA, "data/prepare.py")
    assert info["counts"] == {"read": 32, "blank": 1, "duplicates": 1, "near_duplicates": 0, "other_subreddits": 0, "short": 0}
    documents = {}
    for split, size in info["splits"].items():
        found = rows(out / size["file"])
        assert (size["sequences"], size["tokens"]) == (len(found), sum(len(r["tokens"]) for r in found))
        for row in found:
            assert len(row["tokens"]) <= 40
            documents.setdefault((split, row["doc"]), []).append(row)
    assert len(documents) == 30 == len({doc for _, doc in documents}), "a document is in two splits"
    for (_, doc), pieces in documents.items():
        assert [p["index"] for p in pieces] == list(range(len(pieces)))
        text = tokenizer.decode([t for p in pieces for t in p["tokens"]])
        assert text.encode() == Path(doc).read_bytes(), "round trip changed the text"


def test_split_depends_on_the_text_alone():
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(20_000)]
    splits = [prepare.split_of(d, 0.05, 0.10) for d in digests]
    # Standard error of a share of 0.1 over 20,000 is 0.002.
    assert splits.count("test") / 20_000 == pytest.approx(0.10, abs=0.01)
    assert splits.count("val") / 20_000 == pytest.approx(0.05, abs=0.01)
    assert prepare.split_of(bytes(32), 0.05, 0.10) == "test" and prepare.split_of(b"\xff" * 32, 0.05, 0.10) == "train"


def test_embedded_corpus_stops_at_max_sequences_and_repeats_by_seed(tmp_path):
    first = prepared(tmp_path / "a", "--max_sequences", 60, "--max_length", 64, source="sotu")
    again = prepared(tmp_path / "b", "--max_sequences", 60, "--max_length", 64, source="sotu")
    other = prepared(tmp_path / "c", "--max_sequences", 60, "--max_length", 64, "--seed", 1, source="sotu")
    sizes = [s["sequences"] for s in read_json(first / "dataset_info.json", SCHEMA, "")["splits"].values()]
    assert sizes == [51, 3, 6], "shares of 60 sequences"
    assert (first / "processed_data.json").read_bytes() == (again / "processed_data.json").read_bytes()
    assert (first / "processed_data.json").read_bytes() != (other / "processed_data.json").read_bytes()


def all_tokens(out):
    return [r["tokens"] for name in SPLITS.values() for r in rows(out / name)]


def split_bytes(out):
    return {name: (out / name).read_bytes() for name in SPLITS.values()}


def test_rows_of_jsonl_csv_and_parquet_are_documents_plain_or_compressed(tmp_path):
    texts = [f"Row {i} has words, a \"quote\" and\na second line. " * 6 for i in range(60)]
    table = pa.table({"id": list(range(60)), "body": texts})
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts), encoding="utf-8")
    for ending in ("csv", "jsonl"):
        (tmp_path / f"rows.{ending}.gz").write_bytes(gzip.compress((tmp_path / f"rows.{ending}").read_bytes()))
    tokens = []
    for ending in ("csv", "parquet", "jsonl", "csv.gz", "jsonl.gz"):
        tokens.append(all_tokens(prepared(tmp_path / f"out_{ending}", "--input", tmp_path / f"rows.{ending}", "--text_column", "body")))
    assert len(tokens[0]) == 60 and all(t == tokens[0] for t in tokens)


def test_folders_and_globs_find_compressed_texts(tmp_path):
    folder = write_texts(tmp_path / "texts")
    plain = all_tokens(prepared(tmp_path / "plain", "--input", folder))
    for path in list(folder.iterdir())[::2]:
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert sorted(all_tokens(prepared(tmp_path / "folder", "--input", folder))) == sorted(plain)
    assert sorted(all_tokens(prepared(tmp_path / "glob", "--input", folder / "*.txt", folder / "*.gz"))) == sorted(plain)


UNICODE = [
    "\u0301 lone combining marks \u20dd\u0fb2", "\x00NUL\x00\x00 and \x01\x1b\x7f controls", "\ufeffa mark of byte order\ufeff inside", "one\r\ntwo\rthree\n\r\n four \u2028\u2029\x85\x0b\x0c",
    "family 👨‍👩‍👧‍👦 and 🏴\U000e0067\U000e0062\U000e007f flags 🇪🇺🇪", "עברית \u202e reversed \u202c العربية \u200f", "private \ue000\U0010fffd", "unassigned \u0378\U000e0fff\uffff\ufdd0",
    "é e\u0301 ﬁ ① Å \u212b ｆｕｌｌ", "<|endoftext|> <|mask|><|mask|> [MASK] </s>", "x" * 20_000, "ﷺ" * 3000, "   leading and trailing \t\xa0\u3000  ", "'s 'LL don't '' ' 1234567890 ²³ ٣",
]


def test_hostile_unicode_comes_back_byte_for_byte(tmp_path, tokenizer):
    with_mask = load_tokenizer(BASE_MODEL)
    with_mask.add_special_tokens({"mask_token": MASK_TOKEN})
    with_mask.save_pretrained(tmp_path / "tokenizer")
    mask_id = with_mask.convert_tokens_to_ids(MASK_TOKEN)
    texts = [f"{text}{i}" if i % 2 else f"{i}{text}" for i in range(5) for text in UNICODE]
    (tmp_path / "rows.jsonl").write_bytes("".join(json.dumps({"text": t}, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(texts)).encode())
    (tmp_path / "rows.csv").write_bytes(("text\r\n" + "".join('"' + t.replace('"', '""') + '"\r\n' for t in texts)).encode())
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    for ending in ("jsonl", "csv", "parquet"):
        out = prepared(tmp_path / ending, "--input", tmp_path / f"rows.{ending}", "--min_length", 1, "--max_length", 50, "--tokenizer", tmp_path / "tokenizer")
        documents = {}
        for row in sum((rows(out / name) for name in SPLITS.values()), []):
            documents.setdefault(int(row["doc"].rsplit(":", 1)[1]), []).extend(row["tokens"])
        found = [tokenizer.decode(documents[number]).encode() for number in sorted(documents)]
        assert found == [t.encode() for t in texts], f"{ending}: a text was changed"
        assert all(mask_id not in tokens for tokens in documents.values()), "a mask token was read out of a text"


def test_statistics_are_those_of_the_files(tmp_path, capsys):
    out = prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 30)
    screen = capsys.readouterr().out
    for split, size in read_json(out / "dataset_info.json", SCHEMA, "")["splits"].items():
        found = rows(out / size["file"])
        lengths = [len(r["tokens"]) for r in found]
        assert (size["shortest"], size["longest"], size["mean"]) == (min(lengths), max(lengths), round(sum(lengths) / len(lengths), 2))
        assert size["distinct_tokens"] == len({t for r in found for t in r["tokens"]})
        assert size["characters"] == sum(len(Path(doc).read_bytes().decode()) for doc in {r["doc"] for r in found})
        assert size["documents"] == len({r["doc"] for r in found})
        assert any(line.startswith(split) and f"{size['tokens']:,}" in line for line in screen.splitlines()), "not on the screen"
    assert "tokens/s" in screen


def jaccard(a, b):
    a, b = set(shingles(a)), set(shingles(b))
    return len(a & b) / len(a | b)


def test_only_the_first_of_near_duplicates_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 5000, 200)) for _ in range(60)]
    near = [" ".join("changed" if i == 100 else word for i, word in enumerate(text.split())) for text in texts]
    far = [" ".join(text.split()[:100] + other.split()[:100]) for text, other in zip(texts, texts[1:])]
    assert jaccard(texts[0], near[0]) > 0.9 and 0.2 < jaccard(texts[0], far[0]) < 0.4
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts + near + far))
    out = prepared(tmp_path, "--input", tmp_path / "a.jsonl", "--near_duplicates", 0.8)
    counts = read_json(out / "dataset_info.json", SCHEMA, "")["counts"]
    assert (counts["read"], counts["near_duplicates"], counts["duplicates"]) == (179, 60, 0)
    kept = {int(r["doc"].rsplit(":", 1)[1]) for name in SPLITS.values() for r in rows(out / name)}
    assert kept == {*range(1, 61), *range(121, 180)}, "another than the first of each group was kept"


# Preparation with short waits, which saves its state after every few documents.
RESTLESS = "import sys; from data import prepare, reddit; from data.artifacts import run; prepare.SAVE_EVERY = 0; prepare.BATCH_CHARACTERS = 3000; reddit.BACKOFF = 0.01; "
ONE_RUN = "run(prepare.main)"
TWO_RUNS = "run(prepare.main); run(lambda: prepare.main([*sys.argv[1:], '--output_dir', sys.argv[-1] + '_some', '--subreddits', 'TIFU', 'r/relationships', '--max_sequences', '40']))"


def restless(command, *words, **environment):
    """Start `command`, Python that runs preparation with the arguments `words`, in a process of its own."""
    arguments = [sys.executable, "-c", RESTLESS + command, "--quiet", *map(str, words)]
    return subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def write_rows(path, count):
    """A compressed corpus of `count` rows, every third the same as an earlier one."""
    numbers = [i if i % 3 else i // 6 for i in range(count)]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"Row {i} of many. " + " ".join(str(i * n) for n in range(3, 100))}) + "\n" for i in numbers)
    return path


def test_a_killed_run_goes_on_and_writes_the_same_files(tmp_path, capsys):
    words = ["--input", write_rows(tmp_path / "rows.jsonl.gz", 900), "--max_length", 40, "--near_duplicates", 0.9]
    whole = prepared(tmp_path / "whole", *words)
    out = tmp_path / "killed" / "out"
    writing, size = out / ".rltc_partial" / "processed_data.json", (whole / "processed_data.json").stat().st_size
    process = restless(ONE_RUN, "--source", "text", "--output_dir", out, *words)
    while process.poll() is None and not (writing.exists() and writing.stat().st_size > size / 4):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -9 and [p.name for p in out.iterdir()] == [".rltc_partial"], "it was over before it was killed"
    capsys.readouterr()
    assert split_bytes(prepared(tmp_path / "killed", *words, "--resume")) == split_bytes(whole)
    infos = [read_json(folder / "dataset_info.json", SCHEMA, "") for folder in (whole, out)]
    assert infos[0]["counts"] == infos[1]["counts"] and infos[0]["splits"] == infos[1]["splits"] and infos[0]["counts"]["duplicates"] > 100
    assert f"{sum(s['tokens'] for s in infos[0]['splits'].values()):,} tokens in" not in capsys.readouterr().out, "it began anew"
    assert not (out / ".rltc_partial").exists()


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A folder with a run that was interrupted after its files got their names, before they were described, and its arguments."""
    words = ["--input", write_texts(tmp_path / "texts"), "--max_length", 40]

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "SAVE_EVERY", 0)
        patch.setattr(prepare, "BATCH_CHARACTERS", 3000)
        patch.setattr(prepare, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            prepared(tmp_path, *words)
    return tmp_path, words


def test_a_run_interrupted_at_its_very_end_goes_on(interrupted):
    folder, words = interrupted
    assert (folder / "out" / "test_data.json").exists() and not (folder / "out" / "dataset_info.json").exists()
    assert split_bytes(prepared(folder, *words, "--resume")) == split_bytes(prepared(folder / "whole", *words))


def test_a_run_goes_on_with_the_same_arguments_and_files_only(interrupted):
    folder, words = interrupted
    with pytest.raises(InputError, match="expected --max_length 40, with which the interrupted run began, found 50"):
        prepared(folder, *words[:-1], 50, "--resume")
    (folder / "texts" / "00.txt").write_text("changed")
    with pytest.raises(InputError, match="have changed since"):
        prepared(folder, *words, "--resume")
    assert (folder / "out" / ".rltc_partial" / "state.sqlite").exists(), "the interrupted run was lost"


def test_a_new_run_discards_an_interrupted_one_and_says_so(interrupted, capsys):
    folder, words = interrupted
    out = prepared(folder, *words)
    assert "discarded the interrupted run" in capsys.readouterr().out
    assert split_bytes(out) == split_bytes(prepared(folder / "whole", *words))


def test_there_must_be_something_to_resume(small, tmp_path):
    with pytest.raises(InputError, match="expected an interrupted run in .*, found none"):
        prepared(tmp_path, "--input", tmp_path / "texts", "--resume")


def test_folders_of_the_user_survive(tmp_path, tokenizer):
    folder = write_texts(tmp_path / "texts")
    theirs = [tmp_path / "out" / name / "precious.txt" for name in (".cache", ".partial")]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    for _ in range(2):
        out = prepared(tmp_path, "--input", folder, "--max_length", 50)
        load_sequences(out / "processed_data.json", fingerprint(tokenizer))
    assert (out / CACHE).is_dir() and [path.read_text() for path in theirs] == ["mine", "mine"]


@pytest.mark.parametrize("name", [CACHE, FOLDER])
def test_a_folder_without_the_mark_is_refused_and_survives(tmp_path, name):
    path = tmp_path / "out" / name / "precious.txt"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)
    assert path.read_text() == "mine"


def test_only_what_carries_the_mark_is_removed(tmp_path):
    marked = make_scratch(tmp_path / "marked")
    (marked / "a").mkdir()
    (marked / "a" / "b").write_text("scratch")
    (marked / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious.txt").write_text("mine")
    (tmp_path / "other").symlink_to(marked)
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "precious.txt", tmp_path / "other"):
        for function in (remove_scratch, make_scratch):
            with pytest.raises(InputError, match="move it away"):
                function(path)
    remove_scratch(marked)
    remove_scratch(marked)  # nothing there is nothing to do
    assert not marked.exists() and (tmp_path / "theirs" / "precious.txt").read_text() == "mine"


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    folder = write_texts(tmp_path / "texts")
    (tmp_path / "out").mkdir()
    other = Partial(tmp_path / "out" / ".rltc_partial")
    with pytest.raises(InputError, match="is in use"):
        prepared(tmp_path, "--input", folder)
    other.save({"batch": 1})
    other.close()
    assert Partial(tmp_path / "out" / ".rltc_partial").state == {"batch": 1}, "the other run was disturbed"


def local_tokens(tmp_path, folder):
    """The tokens of a toy hub's files, read from the disk."""
    return all_tokens(prepared(tmp_path / "local", "--input", folder, "--text_column", "content", "--max_length", 64))


def test_reddit_is_streamed_through_lost_connections_filtered_and_stopped(tmp_path):
    local = local_tokens(tmp_path, write_shards(tmp_path / "hub"))
    cuts = {"0001": 1, "0002": 3}

    def drop(path):
        shard = Path(path).stem
        cuts[shard] = cuts.get(shard, 0) - 1
        return cuts[shard] >= 0

    with toy_hub(tmp_path / "hub") as hub:
        hub.drop = drop
        process = restless(TWO_RUNS, "--source", "reddit", "--max_length", 64, "--output_dir", tmp_path / "out", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        printed, errors = process.communicate()
    assert process.returncode == 0 and not errors, errors
    assert all_tokens(tmp_path / "out") == local, "other posts than in the files"
    assert printed.count("connection lost") == 4 and "retry 3 of 5" in printed
    info = read_json(tmp_path / "out" / "dataset_info.json", SCHEMA, "")
    assert info["counts"]["read"] == 240 and info["source_commit"] == COMMIT
    some = read_json(tmp_path / "out_some" / "dataset_info.json", SCHEMA, "")
    counts = some["counts"]
    assert sum(s["sequences"] for s in some["splits"].values()) == 40
    assert 0 < counts["other_subreddits"] < 80, "it read on after --max_sequences"
    numbers = [int(r["doc"][1:]) for name in SPLITS.values() for r in rows(tmp_path / "out_some" / name)]
    assert {n % 3 for n in numbers} == {1, 2}
    assert f"{counts['read']} of {counts['read'] + counts['other_subreddits']} posts were in relationships, tifu" in printed


def test_reddit_goes_on_after_the_hub_was_lost(tmp_path):
    folder = write_shards(tmp_path / "hub")
    words = ["--source", "reddit", "--max_length", 64, "--output_dir", tmp_path / "out", "--retries", 2]
    with toy_hub(tmp_path / "hub") as hub:
        hub.drop = lambda path: "0001" in path and hub.die()
        process = restless(ONE_RUN, *words, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        _, errors = process.communicate()
    assert process.returncode == 2 and len(errors.splitlines()) == 1, errors
    assert "after 80 posts and 2 retries" in errors and "--resume" in errors, errors
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".rltc_partial"]
    with toy_hub(tmp_path / "hub") as hub:
        process = restless(ONE_RUN, *words, "--resume", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        printed, errors = process.communicate()
    assert process.returncode == 0, errors
    tokens = all_tokens(tmp_path / "out")
    assert tokens == local_tokens(tmp_path, folder)
    assert f"{sum(map(len, tokens)):,} tokens in" not in printed, "it began anew"


def test_sequences_are_cut_to_a_shorter_length_without_loss(tmp_path, tokenizer):
    out = prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)
    whole, cut = (load_sequences(out / "processed_data.json", fingerprint(tokenizer), n) for n in (None, 7))
    assert np.array_equal(np.concatenate([whole[i] for i in range(len(whole))]), np.concatenate([cut[i] for i in range(len(cut))]))
    assert [len(cut[i]) for i in range(len(cut))] == cut.lengths.tolist() and cut.lengths.max() == 7 and cut.lengths[: 8 * 5].min() >= 6, 'a piece of a token or two is left'
    assert set(cut.docs) == set(whole.docs) and len(cut.docs) == len(cut)


def test_padding_is_marked():
    ids, valid = pad_batch([np.array([1, 2]), np.array([3])], 9, length=3)
    assert ids.tolist() == [[1, 2, 9], [3, 9, 9]] and valid.tolist() == [[True, True, False], [True, False, False]]


@pytest.fixture
def small(tmp_path):
    return prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)


def edit_last_line(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], change(lines[-1])]) + "\n")


@pytest.mark.parametrize(
    "break_file, expect",
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_text(""), "is empty"),
        (lambda p: edit_last_line(p, lambda line: line[: len(line) // 2]), "expected lines like"),
        (lambda p: p.write_text("\n".join(p.read_text().splitlines()[:-1]) + "\n"), "expected 2"),
        (lambda p: p.write_text('{"text": "of another schema"}\n'), "expected lines like"),
        (lambda p: edit_last_line(p, lambda line: '{"doc":"a","index":0,"tokens":[]}'), "empty one"),
        (lambda p: edit_last_line(p, lambda line: '{"doc":"a","index":0,"tokens":[50257]}'), "expected token ids"),
        (lambda p: edit_last_line(p, lambda line: '{"doc":"a","index":0,"tokens":["x"]}'), "expected lines like"),
        (lambda p: (p.parent / "dataset_info.json").write_text('{"schema": "other"}'), "expected schema"),
        (lambda p: (p.parent / "dataset_info.json").unlink(), "is missing"),
    ],
)
def test_broken_sequence_files_are_refused(small, tokenizer, break_file, expect):
    path = small / "processed_data.json"
    load_sequences(path, fingerprint(tokenizer))
    break_file(path)
    with pytest.raises((InputError, FileNotFoundError), match=expect):
        load_sequences(path, fingerprint(tokenizer))


def test_another_tokenizer_is_refused(small, tmp_path):
    toy = load_tokenizer(write_base(tmp_path / "toy"))
    with pytest.raises(InputError, match="was made with tokenizer"):
        load_sequences(small / "processed_data.json", fingerprint(toy))


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", "s", prepare.parse_args([]), {}, value=float("nan"))
    assert not list(tmp_path.iterdir()), "a half-written file was left"


def test_bad_input_is_one_line_and_leaves_outputs_alone(small, tmp_path):
    before = {p.name: p.read_bytes() for p in small.iterdir() if p.is_file()}
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    check_refusal("data/prepare.py", "--quiet", "--output_dir", small, "--source", "text", "--input", tmp_path / "latin1.txt", expect=["latin1.txt", "UTF-8", "0xef"])
    assert {p.name: p.read_bytes() for p in small.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    "name, content, expect",
    [
        ("a.txt", b"", "among 1 documents"),
        ("a.jsonl", b'{"text": "lone \\ud800 surrogate"}\n', "expected text that UTF-8 can hold"),
        ("a.csv", "text\nna\u00efve\n".encode("latin-1"), "expected CSV in UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{broken\n', "line 2"),
        ("a.jsonl", b'{"body": "x"}\n', "--text_column"),
        ("a.csv", b"id,body\n1,x\n", "expected a column 'text', found: id, body"),
        ("a.parquet", b"not parquet", "expected a Parquet file"),
        ("a.pdf", b"%PDF", "expected a file ending in"),
        ("a.txt.zip", b"PK", "expected a file ending in"),
        ("a.txt.gz", gzip.compress(b"word " * 9999)[:-20], "a.txt.gz: expected a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"text\n" + b"word " * 9999)[:-20], "a.csv.gz: expected a whole gzip file"),
        ("a.jsonl.gz", b'{"text": "not compressed"}', "expected a whole gzip file"),
        ("a.csv", b"text,id\nx\n", "line 2: expected 2 columns"),
        ("a.csv", b'text\n"x', "expected CSV"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, expect):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expect):
        prepared(tmp_path, "--input", tmp_path / name)
    assert not list((tmp_path / "out").iterdir()), "something was left behind"


def test_columns_that_are_not_text_are_refused_and_numbers_in_csv_are_text(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="expected text in the column 'text', found int64"):
        prepared(tmp_path, "--input", tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"{i * 123456789}\n" for i in range(60)))
    out = prepared(tmp_path, "--input", tmp_path / "a.csv", "--min_length", 2)
    assert read_json(out / "dataset_info.json", SCHEMA, "")["counts"]["read"] == 60


def test_text_that_is_all_one_token_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": " the" * (20 + i)}) + "\n" for i in range(60)))
    with pytest.raises(InputError, match="at least two different tokens"):
        prepared(tmp_path, "--input", tmp_path / "a.jsonl")


@pytest.mark.parametrize("words", [["--source", "text"], ["--source", "text", "--input", "nowhere/*.txt"]])
def test_missing_files_are_refused(tmp_path, words):
    with pytest.raises((InputError, FileNotFoundError), match="expected"):
        prepare.main(["--output_dir", str(tmp_path / "out"), "--quiet", *words])


@pytest.mark.parametrize("words", [["--max_length", "0"], ["--val_ratio", "1.7"], ["--test_ratio", "nan"], ["--val_ratio", "0.5", "--test_ratio", "0.5"], ["--min_length", "99", "--max_length", "9"], ["--input", "x.txt"], ["--subreddits", "tifu"], ["--near_duplicates", "1"], ["--retries", "-1"]])
def test_impossible_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.parse_args(words)
    assert "expected" in capsys.readouterr().err


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a directory that can be written"):
        prepared(tmp_path / "file", source="sotu")


def test_reddit_without_the_hub_is_one_clear_line(tmp_path):
    check_refusal("data/prepare.py", "--quiet", "--source", "reddit", "--output_dir", tmp_path / "out", expect=["webis/tldr-17", "--source text"], HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


def test_benchmark_prints_its_figures(capsys):
    benchmark.main(["--measures", "speed", "opening", "--documents", "40", "--repeats", "1", "--sequences", "30", "--length", "20"])
    printed = capsys.readouterr().out
    for part in ("40 documents", "encode_batch_fast", "tokens/s; prepare reaches", "30 sequences of 20 tokens", "cold", "warm", "MiB"):
        assert part in printed


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
