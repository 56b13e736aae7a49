"""Tests of the figures: `python plots/test_visualize.py` or pytest."""

import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import numpy as np
import pytest

from data.artifacts import InputError
from data.letters import shown
from data.provenance import REPOSITORY
from data.testing.toy import check_refusal
from eval import methods
from eval.conftest import record, stages  # fixtures
from plots import panels, texts, visualize


@pytest.fixture
def folder(stages):
    """What the five stages wrote for the toy corpus; the last one is the script under test."""
    return stages[0]


def test_four_figures_with_something_on_them(folder):
    for name in ("training_curves", "rate_distortion", "masked_top1", "texts"):
        image = plt.imread(folder / f"plots/{name}.png")
        assert min(image.shape[:2]) > 300 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 50, name


def test_curves_show_the_figures_of_the_results(record):
    axis = panels.curves_by_method(record, "distortion", "t", "nats").axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {r["method"] for r in record["results"]} <= set(panels.STYLE)
    for method, line in lines.items():
        rows = sorted((r for r in record["results"] if r["method"] == method), key=lambda r: r["keep_ratio"])
        np.testing.assert_allclose(line.get_xdata(), [r["keep_ratio"] for r in rows])
        np.testing.assert_allclose(line.get_ydata(), [r["distortion"]["value"] for r in rows])
    assert axis.get_xlabel() and axis.get_ylabel()
    assert len(axis.collections) == len(lines), "one band per method"
    plt.close("all")


def several(record, tmp_path, kinds):
    """Results files of several kinds, whose nats are those of the record times 1, 2, …"""
    paths = []
    for factor, kind in enumerate(kinds, 1):
        rows = copy.deepcopy(record["results"])
        for row in rows:
            value, interval = row["distortion"]["value"], row["distortion"]["interval"]
            row["distortion"] = {"value": factor * value, "interval": [factor * end for end in interval]}
        paths.append(tmp_path / kind / "evaluation_results.json")
        paths[-1].parent.mkdir()
        paths[-1].write_text(json.dumps(record | {"results": rows}))
    return paths


def test_kinds_have_a_panel_each_with_their_own_figures(record, tmp_path):
    kinds = ["addresses", "mailing-lists", "novels"]
    records = {path.parent.name: json.loads(path.read_text()) for path in several(record, tmp_path, kinds)}
    figure = panels.panels_by_kind(records)
    axes = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title().split(" (")[0] for axis in axes] == ["addresses", "mailing lists", "novels"]
    for axis, found in zip(axes, records.values(), strict=True):
        assert len(axis.collections) == 1, "the agent's band alone"
        for line in axis.get_lines():
            rows = sorted((r for r in found["results"] if line.get_label() == r["method"]), key=lambda r: r["keep_ratio"])
            np.testing.assert_allclose(line.get_ydata(), [r["distortion"]["value"] for r in rows])
    assert len({axis.get_ylim() for axis in axes}) == 1 and len(figure.legends) == 1
    widths = {line.get_label(): line.get_linewidth() for line in axes[0].get_lines()}
    assert all(width < widths["agent"] for method, width in widths.items() if method != "agent")
    plt.close("all")


@pytest.fixture
def reader():
    return json.loads((REPOSITORY / "eval/results/reader/found/reader_results.json").read_text())


def test_a_reader_s_figures_stand_at_their_budgets(reader):
    """Filled of all answers, hollow of short ones, in rows that are named beside the first panel."""
    axes = panels.reader_figure([reader]).axes
    assert [axis.get_title().split(" of")[0] for axis in axes] == ["0.7", "0.5"]
    rows = [label.get_text() for label in axes[0].get_yticklabels()]
    for axis, budget in zip(axes, (0.7, 0.5), strict=True):
        points = [line for line in axis.get_lines() if line.get_marker() == "o"]
        for name, hollow in (("recovered", False), ("recovered_short", True)):
            drawn = [line.get_xdata()[0] for line in points if (line.get_markerfacecolor() == "white") == hollow]
            found = {r["method"]: r[name]["value"] for r in reader["results"] if r["budget"] == budget}
            np.testing.assert_allclose(drawn, [found[method] for method in rows])
    plt.close("all")


def test_methods_have_colours_of_their_own():
    assert len({colour for colour, _ in panels.STYLE.values()}) == len(panels.STYLE)
    classes = [found for found in vars(methods).values() if isinstance(found, type)]
    named = {found.name for found in classes if isinstance(getattr(found, "name", None), str)}
    assert named | set(methods.AGAINST.values()) <= set(panels.STYLE), "every method of eval/methods.py"


def test_a_variant_has_its_method_s_colour_and_a_stranger_none():
    style = panels.styles(["agent", "agent, restored", "random words", "agent, other training", "stranger", "another"])
    assert style["agent"] == ("#D55E00", "o", True) and style["agent, restored"] == ("#D55E00", "o", False)
    assert style["random words"][0] == panels.STYLE["random"][0] and style["agent, other training"] == ("#000000", "*", True)
    assert style["stranger"][0] == style["another"][0] == panels.NEUTRAL and style["stranger"] != style["another"]
    assert panels.NEUTRAL not in {colour for colour, _ in panels.STYLE.values()}


def draw(tmp_path, *words):
    """Names of the figures that a command line draws."""
    visualize.main([str(word) for word in (*words, "--output_dir", tmp_path / "out")])
    return sorted(path.stem for path in (tmp_path / "out").glob("[!.]*"))


def test_log_and_results_are_enough_each(folder, record, tmp_path, capsys, monkeypatch):
    assert draw(tmp_path / "1", "--log_dir", folder / "agent/tb_logs") == ["training_curves"]
    results = folder / "results/evaluation_results.json"
    assert draw(tmp_path / "2", "--results_path", results) == ["masked_top1", "rate_distortion", "texts"]
    (tmp_path / "results.json").write_text(json.dumps(record | {"examples": []}))
    assert draw(tmp_path / "3", "--results_path", tmp_path / "results.json") == ["masked_top1", "rate_distortion"]
    assert "has no examples" in capsys.readouterr().out
    paths = several(record, tmp_path, ["novels", "web"])
    read = REPOSITORY / "eval/results/reader/found/reader_results.json"
    assert draw(tmp_path / "5", "--results_path", *paths, read) == ["rate_distortion_by_kind", "reader"]
    with pytest.raises(InputError, match="found two of the same name"):
        draw(tmp_path / "6", "--results_path", paths[0], paths[0].parent / "../novels/evaluation_results.json")
    with pytest.raises(FileNotFoundError, match="missing.json is missing"):
        draw(tmp_path / "4", "--log_dir", folder / "agent/tb_logs", "--results_path", tmp_path / "missing.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="found neither; run: python rl/train.py or python eval/evaluate.py"):
        draw(tmp_path / "4")


STRANGE = ["a$x_{$.txt", "$", r"\frac", "no UTF-8 \udcff", "half \ud800", "a{b}%s^_\\"]


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_drawn_as_they_are(reader, tmp_path, monkeypatch, name):
    """Of documents, texts, methods, and of the folder where a run is, and no math is made of them."""
    record = json.loads((REPOSITORY / "eval/results/fresh/recipes/evaluation_results.json").read_text())
    for found in (record, reader):
        for row in found["results"]:
            row["method"] = name if row["method"] == found["results"][0]["method"] else row["method"]
    record["examples"][0] |= {"doc": name, "pieces": [{"token": name, "restored": name, "state": "kept"}]}
    (here := tmp_path / name.replace("\ud800", "")).mkdir()  # no file's name has it
    (tmp_path / "web").mkdir()
    for path, found in ((here / "results.json", record), (tmp_path / "web/results.json", record), (here / "reader.json", reader)):
        path.write_text(json.dumps(found))
    monkeypatch.chdir(here)
    assert draw(tmp_path / "1", "--results_path", "results.json") == ["masked_top1", "rate_distortion", "texts"]
    assert draw(tmp_path / "2", "--results_path", "results.json", "../web/results.json", "reader.json")
    figure = visualize.figures_of([Path("results.json")], 1)["texts"]
    assert [text.get_text() for text in figure.axes[0].texts].count(shown(name)) == 3
    plt.close("all")


@pytest.mark.parametrize("sent", [True, False])
def test_texts_are_laid_out_without_losing_a_token(record, sent):
    pieces = record["examples"][0]["pieces"]
    laid = texts.lay_out(pieces, sent)
    assert [piece for *_, piece in laid] == pieces
    assert all(column + len(text) <= texts.COLUMNS for _, column, text, _ in laid)


def test_lines_break_between_words(monkeypatch):
    monkeypatch.setattr(texts, "COLUMNS", 10)
    pieces = [{"token": token, "restored": token, "state": "kept"} for token in (" be", "twe", "en", " wo", "rds")]
    laid = texts.lay_out(pieces, sent=False)
    assert [place[:3] for place in laid] == [(0, 0, "be"), (0, 2, "twe"), (0, 5, "en"), (1, 0, "wo"), (1, 2, "rds")]


def test_a_text_shows_its_gaps_and_what_came_back(record):
    """A grey box for every token that was not sent, and a coloured one for what came back."""
    pieces = record["examples"][1]["pieces"]
    axis = texts.texts_figure(record["examples"][1:2]).axes[0]
    colours = [plt.matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in axis.patches]
    states = [piece["state"] for piece in pieces]
    for state, (_, colour) in texts.STATES.items():
        expected = len(states) - states.count("kept") if state == "hidden" else states.count(state)
        assert colours.count(colour) == expected + 1, "and one in the legend"
    written = " ".join(text.get_text() for text in axis.texts)
    assert f"sent: {states.count('kept')} of {len(states)} tokens" in written
    plt.close("all")


def test_moving_average_is_a_mean():
    assert visualize.moving_average(np.array([1.0, 2.0, 6.0, 3.0]), 3).tolist() == [1.5, 3.0, 11 / 3, 4.5]


def test_bad_input_is_refused(folder, record, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected TensorBoard event files"):
        visualize.training_curves(tmp_path)
    del record["results"][0]["distortion"]
    (tmp_path / "results.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"results\[0\]: expected distortion, found none"):
        draw(tmp_path, "--results_path", tmp_path / "results.json")
    (tmp_path / "results.json").write_text('{"schema": "other"}')
    words = ["--results_path", tmp_path / "results.json", "--log_dir", folder / "agent/tb_logs", "--output_dir", tmp_path / "out"]
    check_refusal("plots/visualize.py", *words, expect=["expected schema", "found 'other'"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--dpi", "0"], ["--num_texts", "0"]])
def test_impossible_flags_are_refused(words):
    with pytest.raises(SystemExit, match="2"):
        visualize.parse_args(words)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
