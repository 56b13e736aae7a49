"""Tests of the tables in the pages: `python eval/test_pages.py` or pytest."""

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError
from eval import pages
from eval.report import half, number, sentences, verdicts

PAGE = """before
<!-- table r={path}
| method | top-1 |
|---|---|
% for c in r.results
| {{{{ c.method }}}} | {{{{ c.top1 | estimate }}}} |
% endfor
-->
{table}
after
"""
TABLE = "| method | top-1 |\n|---|---|\n| agent | .856 (.829 to .880) |\n"


@pytest.fixture
def page(tmp_path):
    """A page whose table is missing."""
    results = {"results": [{"method": "agent", "top1": {"value": 0.8561, "interval": [0.829, 0.88]}}]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return PAGE.format(path=tmp_path / "results.json", table="")


@pytest.mark.parametrize("path", pages.pages(), ids=lambda path: str(path.relative_to(pages.REPOSITORY)))
def test_tables_say_what_the_results_say(path):
    assert pages.differences(path.read_text(encoding="utf-8")) == []


def test_a_table_is_written_from_its_file_and_a_wrong_digit_is_found(page):
    written = pages.renew(page)
    assert TABLE in written and pages.differences(written) == [] and pages.renew(written) == written
    wrong = written.replace(".856", ".857")
    assert pages.differences(wrong) == [(11, "| agent | .856 (.829 to .880) |", "| agent | .857 (.829 to .880) |")]
    assert pages.differences(page) and pages.renew(wrong) == written


def test_numbers_are_written_in_one_way():
    figure = {"value": -0.0721, "interval": [-0.087, 0.055]}
    assert pages.estimate(figure) == "−.072 (−.087 to .055)" and half(figure) == ".071"
    assert [number(1234.5, 1), number(0.5, 2), number(1.0)] == ["1,234.5", "0.50", "1.000"]


def lead(value, p_holm=0.01):
    return {"value": value, "p_holm": p_holm}


def test_verdicts_are_made_from_every_kind_of_record():
    """Fewer nats and errors are better, more J and more of a reader's way: by hand, one kind and several."""
    cell = lambda ratio, **figures: {"method": "random", "keep_ratio_asked": ratio, **figures}
    found = {"schema": "rltc.evaluation/3", "gaps": "found", "differences": [
        cell(0.9, distortion=lead(-0.2), word_error_rate=lead(0.1)),
        cell(0.8, distortion=lead(-0.2), word_error_rate=lead(-0.1, 0.051)),
    ]}
    told = {"schema": "rltc.evaluation/3", "differences": [cell(0.7, top1=lead(-0.2), nats=lead(-0.1))]}
    price = {"schema": "rltc.price_evaluation/4", "prices": [
        {"price": at, "results": [{"method": "agent"}, {"method": "random", "agent_leads_by": lead(value)}]}
        for at, value in ((3.0, 0.1), (6.0, -0.1))
    ]}
    reader = {"schema": "rltc.reader/1", "leads": [{"method": "head", "budget": 0.5, "recovered": lead(0.2)}]}
    rows = {
        "found": ["random", "nats everywhere", "word error rate at 0.8", "word error rate at 0.9"],
        "told": ["random", "nats at 0.7", "", "top-1 at 0.7"], "price": ["random", "J at λ = 3", "", "J at λ = 6"],
        "reader": ["head", "recovered at 0.5", "", ""],
    }
    read = lambda table: [[text.strip() for text in line.split("|")[1:-1]] for line in table.splitlines()]
    kinds = {"found": found, "told": told, "price": price, "reader": reader}
    table = read(pages.FUNCTIONS["verdicts"](kinds))
    assert table[0] == ["kind", "opponent", "ahead", "not distinguishable", "behind"]
    assert table[2:] == [[kind, *row] for kind, row in rows.items()]
    for kind, record in kinds.items():
        assert read(verdicts(record))[2:] == [rows[kind]]
    neither = "not distinguishable in word error rate at 0.8; behind in word error rate at 0.9"
    assert sentences(found | {"documents": 9})[1:] == [f"- random: ahead in nats everywhere; {neither}"]
    del told["differences"][0]["nats"]["p_holm"]
    with pytest.raises(KeyError, match="p_holm"):
        verdicts(kinds)  # of results from before the correction there are none


def test_a_star_stands_for_every_folder_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "REPOSITORY", tmp_path)
    for folder, value in (("b", 2.0), ("a-b", 1.0), ("a", 0.5)):
        (tmp_path / "kinds" / folder).mkdir(parents=True)
        (tmp_path / "kinds" / folder / "r.json").write_text(json.dumps({"x": value}))
    template = "% for kind, r in k.items()\n| {{ kind }} | {{ r.x | number(1) }} |\n% endfor"
    assert pages.make_table("k=kinds/*/r.json", template) == "| a | 0.5 |\n| a-b | 1.0 |\n| b | 2.0 |\n"
    with pytest.raises(InputError, match="expected files kinds/.*/other.json, found none"):
        pages.make_table("k=kinds/*/other.json", template)


SCRIPT = pages.REPOSITORY / "eval/results/reproduce.sh"


def reproduced():
    """{path: command} of what reproduce.sh makes, as it lists it."""
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    listed = subprocess.run([SCRIPT, "--list"], check=True, capture_output=True, text=True).stdout
    steps = [line.rsplit("  # ", 1) for line in listed.splitlines() if not line.startswith("# ")]
    assert len(dict((path, command) for command, path in steps)) == len(steps), "each file once"
    return {path: command for command, path in steps}


def test_every_result_that_a_page_has_is_made_by_the_script():
    tables = [table for path in pages.pages() for table in pages.TABLE.finditer(path.read_text(encoding="utf-8"))]
    sources = {named.split("=", 1)[1] for table in tables for named in table["sources"].split()}
    used = {str(path.relative_to(pages.REPOSITORY)) for source in sources for path in pages.REPOSITORY.glob(source)}
    used = {path for path in used if path.startswith("eval/results/")} - {"eval/results/times.json"}
    assert len(used) > 25 and not used - set(reproduced()), "add them to eval/results/reproduce.sh"


def test_the_script_makes_what_is_missing_once_and_notes_its_seconds(tmp_path):
    """In a copy with a result of its own: made, noted, skipped; another name's is left alone, and a step that fails is named."""
    (tmp_path / "eval/results").mkdir(parents=True)
    (tmp_path / "data").symlink_to(pages.REPOSITORY / "data")
    text, copy = SCRIPT.read_text(encoding="utf-8"), tmp_path / "eval/results/reproduce.sh"
    made = """result eval/results/a.json python -c 'open("eval/results/a.json", "w").write("1")'\nresult b.json true\n"""
    copy.write_text(text[: text.index("TRAINED=")] + made)
    run = lambda *words: subprocess.run(["bash", copy, *words], capture_output=True, text=True, env=environment)
    environment = os.environ | {"PYTHON": sys.executable}
    assert run("a.json").returncode == 0 and (tmp_path / "eval/results/a.json").read_text() == "1"
    times = json.loads((tmp_path / "eval/results/times.json").read_text())
    assert list(times) == ["eval/results/a.json"] and times["eval/results/a.json"]["seconds"] < 60
    again = run()
    assert "a.json is there" in again.stdout and again.returncode == 2 and "expected b.json, found none" in again.stderr


def test_every_command_of_the_script_is_one_that_its_python_script_takes():
    """A word too many, or a flag that is gone, would be found after hours of the steps before it."""
    checked = set()
    for command in reproduced().values():
        before, _, after = command.partition("python ")
        path, *words = shlex.split(after) or [""]
        if not path.endswith(".py") or before.startswith("(commit"):
            continue
        script = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        if hasattr(script, "parse_args"):
            training = {"devices": ("cpu",), "doc": ""} if path.startswith("models/reconstructor/train_") else {}
            script.parse_args(words, **training)
            checked.add(path)
    assert len(checked) >= 10


MISTAKES = [("c.top1", "c.top2"), ("results.json", "nowhere.json"), ("r.results", "one(r.results, method='random')")]


@pytest.mark.parametrize("old, new", MISTAKES)
def test_a_table_without_its_figure_is_refused(page, old, new):
    with pytest.raises(InputError, match="table r=.*:|expected one row"):
        pages.renew(page.replace(old, new))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
