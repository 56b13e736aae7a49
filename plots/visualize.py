"""Draw the figures: training curves, rate–distortion, masked top-1, and texts as they are sent and as they are restored.

    python plots/visualize.py --log_dir models/agent/output/tb_logs --results_path eval/test_output/evaluation_results.json \\
        --output_dir plots/output

Reads only what rl/train.py logged for TensorBoard and what eval/evaluate.py wrote, each where it is there; computes no results of
its own. Writes `training_curves.png` from the log; `rate_distortion.png`, `masked_top1.png` and, if they have examples,
`texts.png` from the results.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.artifacts import InputError, Parser, bounded, make_output_dir, read_json, run, written_aside
from eval.evaluate import SCHEMA

LOGS, RESULTS = Path("models/agent/output/tb_logs"), Path("eval/test_output/evaluation_results.json")
# One colour and marker per method in every figure; colours from Okabe and Ito's colour-blind-safe palette.
STYLE = {
    "agent": ("#D55E00", "o"), "causal surprisal": ("#0072B2", "s"),
    "token frequency": ("#009E73", "^"), "random": ("#7F7F7F", "x"),
    "iterative surprisal": ("#56B4E9", "D"), "mean nats under random masks": ("#CC79A7", "v"),
    "verified once": ("#E69F00", "P"), "agent, other training": ("#000000", "*"),
    "critic alone": ("#F0E442", "<"), "learned proposer": ("#882255", ">"),
}
STATES = {"hidden": ("hidden", "#C8C8C8"), "right": ("restored, right", "#B5DCF2"), "wrong": ("restored, wrong", "#F7BE81")}
CURVES = (
    ("rollout/J", "J in training", "nats per original token"), ("eval/J", "J on held-out texts", "nats per original token"),
    ("rollout/keep_ratio", "keep ratio in training", "kept per original token"),
    ("rollout/nats", "reconstruction loss in training", "nats per masked token"),
    ("rollout/top1", "masked top-1 in training", "share of masked tokens"),
    ("train/entropy", "policy entropy", "nats per decision"),
    ("train/clip_fraction", "clip fraction", "share of decisions"),
    ("time/decisions_per_second", "throughput", "decisions per second"),
)
COLUMNS, WIDTH = 78, 8.0  # characters per line and inches of the figure of texts: 800 pixels at 100 dots per inch
GLYPH = 0.602  # width of a character of DejaVu Sans Mono, as a share of the font size
FONT_SIZE = 72 * WIDTH / (COLUMNS + 2) / GLYPH  # points
LINE = 1.55 * FONT_SIZE / 72  # inches


def training_curves(log_dir):
    """The figure of CURVES. Raises FileNotFoundError if there is no log, InputError if it has not every curve."""
    if not any(log_dir.glob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{log_dir}: expected TensorBoard event files, found none. Train with: python rl/train.py")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0}).Reload()
    figure, axes = plt.subplots(2, 4, figsize=(16, 6.4), layout="constrained")
    for axis, (tag, title, unit) in zip(axes.flat, CURVES, strict=True):
        if tag not in (tags := events.Tags()["scalars"]):
            found = ", ".join(tags) or "none"
            raise InputError(f"{log_dir}: expected the TensorBoard scalar '{tag}', found {found}; train with: python rl/train.py")
        steps, values = np.array([(point.step, point.value) for point in events.Scalars(tag)]).T
        axis.plot(steps, values, color="#0072B2", linewidth=1.2, alpha=0.25, marker="o", markersize=2)
        axis.plot(steps, moving_average(values, len(values) // 12), color="#0072B2", linewidth=2)
        axis.set(title=title, xlabel="texts", ylabel=unit)
        axis.margins(y=0.1)
    figure.suptitle("Training the agent (thin: every update; thick: moving average; λ differs from text to text)")
    return figure


def moving_average(values, width):
    """Centred mean over up to `width` points, narrower at the ends."""
    half = width // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def series(record, method, name):
    """x = keep ratio, y, low, high of a figure of merit over the keep ratios of one method, sorted by x."""
    rows = sorted((r for r in record["results"] if r["method"] == method), key=lambda r: r["keep_ratio"])
    try:
        return np.array([[r["keep_ratio"], r[name]["value"], *r[name]["interval"]] for r in rows]).T
    except KeyError as error:
        expected = f"evaluation results: expected the figure {error} for {method}, found none"
        raise InputError(f"{expected}; run again: python eval/evaluate.py") from None


def curves_by_method(record, name, title, unit):
    """One line with a 95 % band per method, against the keep ratio."""
    figure, axis = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    several = len(record["agents"]) > 1
    for method in dict.fromkeys(r["method"] for r in record["results"]):
        if method not in STYLE:
            expected = f"evaluation results: expected the methods {', '.join(STYLE)}, found '{method}'"
            raise InputError(f"{expected}; give it a colour in plots/visualize.py")
        colour, marker = STYLE[method]
        x, y, low, high = series(record, method, name)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        bold = {"linewidth": 2.4, "zorder": 3} if method == "agent" else {"linewidth": 1.6, "zorder": 2}
        runs = f", mean of {len(record['agents'])}" if method == "agent" and several else ""
        axis.plot(x, y, color=colour, marker=marker, label=method + runs, **bold)
    axis.set(title=title, xlabel="keep ratio (tokens sent per original token)", ylabel=unit)
    axis.invert_xaxis()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    over = " and agents" if several else ""
    texts = f"{record['texts']} texts of {record['documents']} documents; bands: 95 %, over documents{over}"
    figure.supxlabel(texts, fontsize=8, color="#555555")
    return figure


def lay_out(pieces, sent):
    """A text as it is sent, with gaps one character wide, or as it is restored, in lines of COLUMNS characters, broken between
    words: (line, column, text, piece) of every token.
    """
    words = []
    for piece in pieces:
        text = " _" if sent and piece["state"] != "kept" else piece["restored"]
        text = text.replace("\n", "¶").replace("\t", " ") or "∅"
        if not words or text.startswith(" "):
            words.append([])
        words[-1].append((text, piece))
    laid, line, column = [], 0, 0
    for word in words:
        if column and column + sum(len(text) for text, _ in word) > COLUMNS:
            line, column = line + 1, 0
        for text, piece in word:
            text = text if column else text.lstrip(" ") or " "
            laid.append((line, column, text, piece))
            column += len(text)
    return laid


def draw_text(axis, laid, top, sent):
    """Draw a laid-out text below `top`, in lines; returns where it ends. Gaps and restored tokens get the colours of STATES."""
    lines = [""] * (laid[-1][0] + 1)
    for line, column, text, piece in laid:
        y, hidden = top + line, sent and piece["state"] != "kept"
        lines[line] += " " * len(text) if hidden else text
        if hidden:
            axis.add_patch(plt.Rectangle((column + len(text) - 1, y - 0.3), 1, 0.6, color=STATES["hidden"][1], linewidth=0))
        elif piece["state"] != "kept":
            space = len(text) - len(text.lstrip(" ")) if text.strip() else 0
            box = (column + space - 0.1, y - 0.42), len(text) - space + 0.2, 0.84
            axis.add_patch(plt.Rectangle(*box, color=STATES[piece["state"]][1], linewidth=0))
    for line, text in enumerate(lines):
        axis.text(0, top + line, text.replace("$", r"\$"), family="DejaVu Sans Mono", fontsize=FONT_SIZE, va="center")
    return top + len(lines)


def texts_figure(examples):
    """Example texts, each as it is sent, with its gaps, and as it is restored."""
    texts = [(e, lay_out(e["pieces"], sent=True), lay_out(e["pieces"], sent=False)) for e in examples]
    height = 1.2 + sum(sent[-1][0] + restored[-1][0] + 6.6 for _, sent, restored in texts)
    figure = plt.figure(figsize=(WIDTH, height * LINE))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-1, COLUMNS + 1), ylim=(height, 0))
    axis.axis("off")
    small = {"fontsize": 0.95 * FONT_SIZE, "va": "center"}
    for x, (label, colour) in zip((0, 11, 30), STATES.values(), strict=True):
        axis.add_patch(plt.Rectangle((x, 0.65), 1.6, 0.7, color=colour, linewidth=0))
        axis.text(x + 2.2, 1.0, label, **small)
    top = 2.6
    for example, sent, restored in texts:
        states = [piece["state"] for piece in example["pieces"]]
        kept, wrong = states.count("kept"), states.count("wrong")
        axis.text(0, top, f"sent: {kept} of {len(states)} tokens", weight="bold", **small)
        axis.text(COLUMNS, top, example["doc"], ha="right", color="#666666", **small)
        top = draw_text(axis, sent, top + 1.2, sent=True) + 0.4
        title = f"restored: {len(states) - kept - wrong} of the {len(states) - kept} hidden tokens are right"
        axis.text(0, top, title, weight="bold", **small)
        top = draw_text(axis, restored, top + 1.2, sent=False) + 0.8
    return figure


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--log_dir", type=Path, default=None, help=f"TensorBoard log of rl/train.py; default: {LOGS}, if it is there")
    add("--results_path", type=Path, default=None, help=f"results of eval/evaluate.py; default: {RESULTS}, if they are there")
    add("--output_dir", type=Path, default=Path("plots/output"), help="directory for the figures")
    add("--num_texts", type=bounded(int, 1, 100), default=3, help="example texts in texts.png")
    add("--dpi", type=bounded(int, 30, 1200), default=130, help="resolution, dots per inch")
    args = parser.parse_args(argv)
    if args.log_dir is None and args.results_path is None:
        args.log_dir = LOGS if LOGS.is_dir() else None
        args.results_path = RESULTS if RESULTS.is_file() else None
    return args


def main(argv=None):
    args, drawn = parse_args(argv), {}
    if args.log_dir is None and args.results_path is None:
        commands = "python rl/train.py or python eval/evaluate.py"
        raise FileNotFoundError(f"expected a log in {LOGS} or results in {RESULTS}, found neither; run: {commands}")
    if args.results_path:
        record = read_json(args.results_path, SCHEMA, "eval/evaluate.py")
        title, unit = "Rate–distortion on held-out documents (lower is better)", "distortion (nats per original token)"
        drawn["rate_distortion"] = curves_by_method(record, "distortion", title, unit)
        title, unit = "Restored tokens on held-out documents (higher is better)", "top-1 (share of masked tokens restored)"
        drawn["masked_top1"] = curves_by_method(record, "top1", title, unit)
        if record["examples"]:
            drawn["texts"] = texts_figure(record["examples"][: args.num_texts])
        else:
            print(f"{args.results_path} has no examples for texts.png; for some: python eval/evaluate.py --num_examples 10")
    if args.log_dir:
        drawn["training_curves"] = training_curves(args.log_dir)
    make_output_dir(args.output_dir)
    for name, figure in drawn.items():
        with written_aside(args.output_dir / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=args.dpi)
        plt.close(figure)
        print(args.output_dir / f"{name}.png")


if __name__ == "__main__":
    run(main)
