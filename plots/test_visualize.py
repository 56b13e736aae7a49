"""Tests of the figures: `python plots/test_visualize.py` or pytest."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import numpy as np
import pytest

from data.artifacts import InputError
from data.testing.toy import check_refusal, run_pipeline
from eval import methods
from plots import visualize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the five stages wrote for the toy corpus; the last one is the script under test."""
    folder = tmp_path_factory.mktemp("stages")
    run_pipeline(folder)
    return folder


@pytest.fixture
def record(folder):
    return json.loads((folder / "results/evaluation_results.json").read_text())


def test_four_figures_with_something_on_them(folder):
    for name in ("training_curves", "rate_distortion", "masked_top1", "texts"):
        image = plt.imread(folder / f"plots/{name}.png")
        assert min(image.shape[:2]) > 300 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 50, name


def test_curves_show_the_figures_of_the_results(record):
    axis = visualize.curves_by_method(record, "distortion", "t", "nats").axes[0]
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {r["method"] for r in record["results"]} <= set(visualize.STYLE)
    for method, line in lines.items():
        rows = sorted((r for r in record["results"] if r["method"] == method), key=lambda r: r["keep_ratio"])
        np.testing.assert_allclose(line.get_xdata(), [r["keep_ratio"] for r in rows])
        np.testing.assert_allclose(line.get_ydata(), [r["distortion"]["value"] for r in rows])
    assert axis.get_xlabel() and axis.get_ylabel()
    assert len(axis.collections) == len(lines), "one band per method"
    plt.close("all")


def test_methods_have_colours_of_their_own():
    assert len({colour for colour, _ in visualize.STYLE.values()}) == len(visualize.STYLE)
    named = {found.name for found in vars(methods).values() if isinstance(found, type) and hasattr(found, "scores")}
    assert named == set(visualize.STYLE), "every method of eval/methods.py"


def test_results_without_examples_give_the_other_figures(folder, record, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(record | {"examples": []}))
    visualize.main(["--results_path", str(tmp_path / "results.json"), "--log_dir", str(folder / "agent/tb_logs"), "--output_dir", str(tmp_path / "out")])
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["masked_top1", "rate_distortion", "training_curves"]
    assert "has no examples" in capsys.readouterr().out


def test_wrapped_texts_lose_no_token_and_fit_the_columns(record):
    pieces = record["examples"][0]["pieces"]
    laid = visualize.wrap_pieces(pieces)
    assert [piece for *_, piece in laid] == pieces
    assert all(column + width <= visualize.COLUMNS for _, column, _, width, _ in laid)


def test_underlines_show_the_importances(record):
    """One underline per token, the more opaque the more the policy looks at it."""
    figure = visualize.texts_figure(record, 1)
    lines = [p for p in figure.axes[0].patches if p.get_height() == visualize.UNDERLINE][1:]  # the first is the legend's
    pieces = record["examples"][0]["pieces"]
    most = max(p["importance"] for p in pieces)
    np.testing.assert_allclose([p.get_alpha() for p in lines], [p["importance"] / most for p in pieces])
    plt.close("all")


def test_moving_average_is_a_mean():
    assert visualize.moving_average(np.array([1.0, 2.0, 6.0, 3.0]), 3).tolist() == [1.5, 3.0, 11 / 3, 4.5]


def test_bad_input_is_refused(folder, record, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected TensorBoard event files"):
        visualize.training_curves(tmp_path)
    del record["results"][0]["distortion"]
    with pytest.raises(InputError, match="expected the figure 'distortion'"):
        visualize.curves_by_method(record, "distortion", "t", "nats")
    record["results"][0]["method"] = "stranger"
    with pytest.raises(InputError, match="found 'stranger'"):
        visualize.curves_by_method(record, "top1", "t", "share")
    (tmp_path / "results.json").write_text('{"schema": "other"}')
    check_refusal("plots/visualize.py", "--results_path", tmp_path / "results.json", "--log_dir", folder / "agent/tb_logs", "--output_dir", tmp_path / "out", expect=["expected schema", "found 'other'"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--dpi", "0"], ["--num_texts", "0"]])
def test_impossible_flags_are_refused(words):
    with pytest.raises(SystemExit, match="2"):
        visualize.parse_args(words)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
