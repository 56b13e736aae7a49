"""Test of a stranger's file: two commands, a table. `python eval/test_stranger.py` or pytest."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data import prepare
from data.provenance import REPOSITORY
from eval import evaluate

LINES = (REPOSITORY / "eval/questions.jsonl").read_text(encoding="utf-8").splitlines()
TEXT = "\n\n".join(dict.fromkeys(json.loads(line)["context"] for line in LINES[:60]))[:9000]


@pytest.mark.parametrize("name", ["theirs.txt", "theirs/notes.md"])
def test_one_file_is_prepared_and_evaluated_with_the_agent_that_ships(tmp_path, capsys, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(TEXT, encoding="utf-8")
    given, out = str(tmp_path / name.split("/")[0]), str(tmp_path / "mine")
    prepare.main(["--source", "text", "--input", given, "--output_dir", out, "--quiet"])
    assert "pieces of them were split" in capsys.readouterr().out
    words = ["--data_path", f"{out}/test_data.json", "--output_dir", str(tmp_path / "results"), "--num_sequences", "4", "--quiet"]
    evaluate.main([*words, "--keep_ratios", "0.7", "--methods", "frequency", "random", "--num_examples", "1", "--device", "cpu"])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "results/evaluation_results.json").read_text())
    assert {row["method"] for row in record["results"]} == {"agent", "token frequency", "random"}
    assert record["documents"] >= 2 and "| agent " in printed


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
