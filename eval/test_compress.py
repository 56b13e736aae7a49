"""Tests of the command line that compresses and restores: `python eval/test_compress.py` or pytest."""

import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError
from data.provenance import REPOSITORY
from eval import compress
from eval.compressor import Compressor
from eval.conftest import NOTE
from eval.files import groups
from models.agent.files import RELEASED
from models.reconstructor.tokenizer import BASE_MODEL

OTHER = "It was in the autumn of that year that the second of the two ships came back to the harbour, with all of her crew. 🙂\n"


def count(text):
    return Compressor.from_pretrained().encoder.count(text)


def test_both_numbers_are_printed_and_what_is_kept_is_never_more(run, note):
    out, err = run("--input", note, "--keep_ratio", 0.6)
    tokens, kept = count(NOTE), count(out.decode())
    asked = f"asked for at most {int(0.6 * tokens)} (keep ratio 0.6)"
    assert err == [f"{note}: {tokens} tokens, {asked}, kept {kept} ({kept / tokens:.3f})"]
    assert kept <= int(0.6 * tokens) and out.decode() == Compressor.from_pretrained().compress(NOTE, keep_ratio=0.6).text
    assert "(keep ratio 0.7)" in run("--input", note)[1][0], "the default"
    out, err = run("--input", note, "--target_tokens", 20)
    assert count(out.decode()) <= 20 and "asked for at most 20, kept" in err[0]
    assert "price 3, kept" in run("--input", note, "--price", 3)[1][0]


def test_what_stays(run, note, tmp_path):
    (tmp_path / "names").write_text("old house\n")
    words = ("--input", note, "--target_tokens", 22)
    flags = "--keep_numbers", "--keep_names", tmp_path / "names", "--keep_pattern", "The committee", "--keep_pattern", "river"
    out, err = run(*words, *flags)
    assert all(kept in out.decode() for kept in ("14", "old house", "The committee", "river", "not")) and len(err) == 1
    assert not all(kept in run(*words)[0].decode() for kept in ("14", "old house", "The committee", "river"))
    out, err = run(*words, "--keep_lines", "last", 1, "--keep_lines", "first", 1)
    assert NOTE.splitlines()[0] in out.decode() and NOTE.splitlines()[2] in out.decode()
    assert "what is protected has" in err[0] and "more than the 22 asked for" in err[0]
    assert " not" not in run("--input", note, "--target_tokens", 3, "--no-keep_negations")[0].decode()


def test_what_passes_through_whole_says_so(run, tmp_path):
    (tmp_path / "hello.txt").write_text("hello")
    out, err = run("--input", tmp_path / "hello.txt")
    assert out == b"hello" and err[0].endswith("1 tokens, too few to compress: passed through whole")


def test_a_folder_and_a_pattern_go_to_a_folder(run, tmp_path, note):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_bytes(NOTE.encode())
    (tmp_path / "in/deep/b.md").write_bytes(OTHER.encode())
    (tmp_path / "in/.hidden").write_bytes(b"\xff")
    _, err = run("--input", tmp_path / "in", "--output", tmp_path / "out")
    made = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert made.keys() == {"a.txt", "deep/b.md"} and len(err) == 2 and made["deep/b.md"] != OTHER
    run("--input", f"{tmp_path}/in/*/*.md", "--output", tmp_path / "some")
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["b.md"]
    run("--input", note, "--output", tmp_path / "some")
    assert (tmp_path / "some/notes.txt").read_bytes().decode() == Compressor.from_pretrained().compress(NOTE).text


def test_stdin_to_stdout(run, monkeypatch):
    for flag in ("--input", "--restore"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(OTHER.encode())))
        out, err = run(flag, "-")
        assert out and (not err if flag == "--restore" else err[0].startswith("stdin: "))


def test_json_lines_keep_their_fields_and_order(run, tmp_path):
    rows = [{"id": i, "body": text, "tags": ["é", None, {"x": 1.5}]} for i, text in enumerate([NOTE * 9, "hello", OTHER, ""])]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    (tmp_path / "in.jsonl").write_text("\ufeff" + "\r\n".join([*lines[:2], "", *lines[2:]]), encoding="utf-8")
    words = "--text_column", "body", "--keep_ratio", 0.5
    _, err = run("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", *words)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{name: row[name] for name in ("id", "body", "tags")} for row in found] == rows
    for row in found:
        assert row["tokens"] == count(row["body"]) and row["kept_tokens"] == count(row["compressed"])
        assert row["kept_tokens"] <= 0.5 * row["tokens"] or row["compressed"] == row["body"]
    assert "2 of 4 texts passed through whole" in err[0] and f"{sum(row['tokens'] for row in found):,} tokens" in err[0]


@pytest.mark.parametrize(
    "line, expected",
    [
        ('{"text": 1}', "line 2: expected a JSON object with a text in 'text', found another value"),
        ('{"body": "x"}', "line 2: .*found no such field"), ('["x"]', "line 2: .*found another value"),
        ('{"text": "x"', "line 2: .*found no JSON"), ('{"text": "\\ud800"}', "line 2: .*half of a surrogate pair"),
        ("[" * 100_000, "line 2: "),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_half_written(run, tmp_path, line, expected):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": NOTE}) + f"\n{line}\n")
    with pytest.raises(InputError, match=expected) as refused:
        run("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert "\n" not in str(refused.value) and [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_why_a_word_stayed(run, note):
    out, err = run("--input", note, "--target_tokens", 30, "--explain")
    assert err[1].startswith("nats per token if it is left out, if it is kept; price ")
    words = {line.split("  ")[-1]: line for line in err[2:]}
    assert "protected" in words["' not'"] and len(err) > 40
    assert any("  kept  " in line for line in err) and any("left out" in line for line in err)


def test_what_is_refused_in_one_line(run, tmp_path, note, monkeypatch):
    (tmp_path / "latin.txt").write_bytes(b"Ren\xe9e was here")
    (tmp_path / "surrogate.txt").write_bytes(b"\xed\xa0\x80 and more")
    (pair := tmp_path / "pair").mkdir()
    (names := tmp_path / "names.txt").write_text("Ada")
    for name in ("a.txt", "a.txt.rltc.json"):
        (pair / name).write_text("x")
    page = tmp_path / "page.html"
    (loop := tmp_path / "loop").symlink_to(loop)
    cases = [
        (("--input", tmp_path / "latin.txt"), "latin.txt: expected text in UTF-8, found other bytes at byte 3"),
        (("--input", tmp_path / "surrogate.txt"), "expected text in UTF-8"),
        (("--input", note, "--output", note), "--output .*: would be written over --input"),
        (("--input", tmp_path, "--output", tmp_path), "would be written over --input"),
        (("--input", note, "--html", note), "--html .*: would be written over --input"),
        (("--input", note, "--keep_names", names, "--html", names), "--html .*: would be written over --keep_names"),
        (("--input", note, "--keep_names", names, "--output", names), "--output .*: would be written over --keep_names"),
        (("--input", note, "--output", page, "--html", page), "--html .*: would be written over --output"),
        (("--restore", pair, "--output", tmp_path / "new"), "--output .*new/a.txt: would be written over --output"),
        (("--input", tmp_path), "expected a folder for the 6 files"),
        (("--input", note, "--output", tmp_path / "none/x.txt"), "expected a folder .*none for it"),
        (("--input", tmp_path / "none.txt"), "none.txt: expected a file, a folder"),
        (("--input", note, "--output", loop), "loop: expected a place that can be written, found: Too many levels"),
        (("--input", note, "--keep_pattern", "("), "expected a regular expression"),
        (("--input", note, "--model_path", tmp_path / "none"), "is missing; expected an agent"),
        (("--input", note, "--output", Path(RELEASED) / "config.json"), "would be written over --model_path"),
        (("--input", note, "--output", Path(BASE_MODEL) / "model.safetensors"), "would be written over --reconstructor_path"),
    ]
    for words, expected in cases:
        with pytest.raises((InputError, FileNotFoundError), match=expected) as refused:
            run(*words)
        assert "\n" not in str(refused.value)
    monkeypatch.chdir(tmp_path)  # where the agent that ships is known by its name, too
    with pytest.raises(InputError, match="would be written over --model_path"):
        run("--input", note, "--output", REPOSITORY / RELEASED / "config.json")
    assert note.read_bytes() == NOTE.encode() and names.read_text() == "Ada"
    assert not page.exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words", ["--input x --keep_ratio 0", "--input x --keep_ratio 1.1", "--input x --keep_ratio .5 --price 2", "",
              "--input x --restore x", "--input x --keep_lines middle 2", "--input x --keep_lines first some",
              "--input x --price nan", "--restore x --keep_ratio .5", "--restore x --explain", "--input x --force",
              "--input x --lossless --keep_numbers", "--input x --lossless --html y", "--restore x --lossless",
              "--input x --text_column y --output z.rltc.json", "--input x --keep_lines last -1",
              "--input x --keep_lines first 1000000001", f"--input x --keep_lines first {'9' * 5000}"],
)
def test_a_command_line_that_is_none(words, capsys):
    with pytest.raises(SystemExit) as ended:
        compress.parse_args(words.split())
    assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_help_shows_how(capsys):
    with pytest.raises(SystemExit):
        compress.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    expected = "--restore notes.short.txt", "<keep>", "--keep_pattern", "0.7 if nothing is asked for", "Never more"
    assert all(word in shown for word in expected)


def test_groups_hold_so_much_and_lose_nothing():
    pairs = [(i, "x" * 1_500_000) for i in range(5)] + [(i, "") for i in range(2000)]
    found = list(groups(pairs))
    assert [pair for group in found for pair in group] == pairs and [len(group) for group in found[:2]] == [2, 2]
    assert max(map(len, found)) == 1024


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
