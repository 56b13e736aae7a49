"""Draw the figures: training curves, rate–distortion, masked top-1, and texts with their tokens coloured.

    python plots/visualize.py --log_dir models/agent/output/tb_logs --results_path eval/test_output/evaluation_results.json --output_dir plots/output

Reads only what rl/train.py logged for TensorBoard and what eval/evaluate.py wrote; computes no results of its own.
Writes `training_curves.png`, `rate_distortion.png`, `masked_top1.png` and, if the results have examples, `texts.png`.
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

# One colour and marker per method in every figure; colours from Okabe and Ito's colour-blind-safe palette.
STYLE = {
    "agent": ("#D55E00", "o"), "causal surprisal": ("#0072B2", "s"), "token frequency": ("#009E73", "^"), "random": ("#7F7F7F", "x"),
    "iterative surprisal": ("#56B4E9", "D"), "mean nats under random masks": ("#CC79A7", "v"), "surprisal verified once": ("#E69F00", "P"), "reconstructor-verified masks": ("#000000", "*"),
}
STATE_COLOUR = {"kept": None, "right": "#BFE5D3", "wrong": "#F6B8A6"}
IMPORTANCE_COLOUR, UNDERLINE = "#0072B2", 0.12  # height in lines
CURVES = (
    ("rollout/J", "J in training", "nats per original token"), ("eval/J", "J on held-out texts", "nats per original token"),
    ("rollout/keep_ratio", "keep ratio in training", "kept per original token"), ("rollout/nats", "reconstruction loss in training", "nats per masked token"),
    ("rollout/top1", "masked top-1 in training", "share of masked tokens"), ("train/entropy", "policy entropy", "nats per decision"),
    ("train/clip_fraction", "clip fraction", "share of decisions"), ("time/decisions_per_second", "throughput", "decisions per second"),
)
COLUMNS = 116  # characters per line of the figure of texts
LINES_PER_TEXT = 7


def read_curve(events, tag, log_dir):
    """Steps and values of one TensorBoard scalar. Raises InputError if the log does not have it."""
    if tag not in events.Tags()["scalars"]:
        raise InputError(f"{log_dir}: expected the TensorBoard scalar '{tag}', found {', '.join(events.Tags()['scalars']) or 'none'}; train with: python rl/train.py")
    points = events.Scalars(tag)
    return np.array([p.step for p in points]), np.array([p.value for p in points])


def moving_average(values, width):
    """Centred mean over up to `width` points, narrower at the ends."""
    half = width // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def training_curves(log_dir):
    """The figure of CURVES. Raises FileNotFoundError if there is no log."""
    if not any(log_dir.glob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{log_dir}: expected TensorBoard event files, found none. Train with: python rl/train.py")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0}).Reload()
    figure, axes = plt.subplots(2, 4, figsize=(16, 6.4), layout="constrained")
    for axis, (tag, title, unit) in zip(axes.flat, CURVES, strict=True):
        steps, values = read_curve(events, tag, log_dir)
        few = len(values) < 30
        axis.plot(steps, values, color="#0072B2", alpha=1 if few else 0.25, marker="o" if few else None, markersize=3, linewidth=1.2)
        if not few:
            axis.plot(steps, moving_average(values, len(values) // 12), color="#0072B2", linewidth=2)
        axis.set(title=title, xlabel="texts", ylabel=unit)
        axis.margins(y=0.1)
    figure.suptitle("Training the agent (thin: every update; thick: moving average; λ differs from text to text)")
    return figure


def series(record, method, name):
    """x = keep ratio, y, low, high of a figure of merit over the keep ratios of one method, sorted by x."""
    rows = sorted((r for r in record["results"] if r["method"] == method), key=lambda r: r["keep_ratio"])
    try:
        return np.array([[r["keep_ratio"], r[name]["value"], *r[name]["interval"]] for r in rows]).T
    except KeyError as error:
        raise InputError(f"evaluation results: expected the figure {error} for {method}, found none; run again: python eval/evaluate.py") from None


def curves_by_method(record, name, title, unit):
    """One line with a 95 % band per method, against the keep ratio."""
    figure, axis = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    methods = list(dict.fromkeys(r["method"] for r in record["results"]))
    for method in methods:
        if method not in STYLE:
            raise InputError(f"evaluation results: expected the methods {', '.join(STYLE)}, found '{method}'; give it a colour in plots/visualize.py")
        colour, marker = STYLE[method]
        x, y, low, high = series(record, method, name)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        runs = f", mean of {len(record['agents'])}" if method == "agent" and len(record["agents"]) > 1 else ""
        axis.plot(x, y, color=colour, marker=marker, label=method + runs, linewidth=2.4 if method == "agent" else 1.6, zorder=3 if method == "agent" else 2)
    axis.set(title=title, xlabel="keep ratio (tokens sent per original token)", ylabel=unit)
    axis.invert_xaxis()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    figure.supxlabel(f"{record['texts']} texts of {record['documents']} documents; bands: 95 %, over documents{' and agents' if len(record['agents']) > 1 else ''}", fontsize=8, color="#555555")
    return figure


def wrap_pieces(pieces):
    """Lay tokens out in lines of COLUMNS characters: (line, column, text, width, piece) for each token."""
    laid, line, column = [], 0, 0
    for piece in pieces:
        shown = (piece["token"] if piece["state"] != "wrong" else piece["restored"]).replace("\n", "¶").replace("\t", " ") or "∅"
        width = len(shown)
        if column and column + width > COLUMNS:
            line, column, shown = line + 1, 0, shown.lstrip(" ") or " "
            width = len(shown)
        if line >= LINES_PER_TEXT:
            break
        laid.append((line, column, shown, width, piece))
        column += width
    return laid


def texts_figure(record, count):
    """Example texts as the receiver reads them: kept tokens plain, restored ones green if right, red if wrong.

    A line under a token shows how much TokenImportanceAttention looks at it, relative to the token it looks at most.
    Results of an agent without it have no such lines.
    """
    shown = record["examples"][:count]
    rows = [(e, wrap_pieces(e["pieces"])) for e in shown]
    height = sum(laid[-1][0] + 1 + 1.9 for _, laid in rows) + 1
    figure = plt.figure(figsize=(11, 0.25 * height + 0.5))
    axis = figure.add_axes((0.015, 0.01, 0.97, 0.98), xlim=(0, COLUMNS), ylim=(height + 1, 0))
    axis.axis("off")
    axis.text(0, 0.7, "What the receiver reads: ", fontsize=11, weight="bold", va="center")
    for x, state, label in ((27, "kept", "sent"), (33, "right", "restored, right"), (50, "wrong", "restored, wrong")):
        axis.text(x, 0.7, label, fontsize=10, va="center", bbox={"facecolor": STATE_COLOUR[state] or "white", "edgecolor": "#999999", "pad": 2, "linewidth": 0.5})
    underlined = "importance" in shown[0]["pieces"][0]
    if underlined:
        axis.text(68, 0.7, "underlined: what the policy's pooling attends to", fontsize=10, va="center")
        axis.add_patch(plt.Rectangle((68, 1.12), 10, UNDERLINE, color=IMPORTANCE_COLOUR, linewidth=0))
    top = 2.0
    for example, laid in rows:
        wrong = sum(p["state"] == "wrong" for p in example["pieces"])
        masked = sum(p["state"] != "kept" for p in example["pieces"])
        axis.text(0, top + 0.3, f"{example['doc']}: {example['keep_ratio']:.0%} of {len(example['pieces'])} tokens sent, {masked - wrong} of {masked} masked tokens restored", fontsize=9, weight="bold", color="#333333", va="center")
        most = max(p.get("importance", 0) for p in example["pieces"])
        for line, column, text, width, piece in laid:
            y = top + 1.4 + line
            if colour := STATE_COLOUR[piece["state"]]:
                axis.add_patch(plt.Rectangle((column, y - 0.45), width, 0.9, color=colour, linewidth=0))
            if underlined:
                axis.add_patch(plt.Rectangle((column, y + 0.45 - UNDERLINE), width, UNDERLINE, color=IMPORTANCE_COLOUR, alpha=piece["importance"] / most, linewidth=0))
            for offset, character in enumerate(text):
                axis.text(column + offset + 0.5, y, character.replace("$", r"\$"), family="monospace", fontsize=10.4, ha="center", va="center")
        top += laid[-1][0] + 1 + 1.9
    return figure


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--log_dir", type=Path, default=Path("models/agent/output/tb_logs"), help="TensorBoard log of rl/train.py")
    parser.add_argument("--results_path", type=Path, default=Path("eval/test_output/evaluation_results.json"), help="results of eval/evaluate.py")
    parser.add_argument("--output_dir", type=Path, default=Path("plots/output"), help="directory for the figures")
    parser.add_argument("--num_texts", type=bounded(int, 1, 100), default=5, help="example texts in texts.png")
    parser.add_argument("--dpi", type=bounded(int, 30, 1200), default=130, help="resolution, dots per inch")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    record = read_json(args.results_path, SCHEMA, "eval/evaluate.py")
    drawn = {
        "training_curves": training_curves(args.log_dir),
        "rate_distortion": curves_by_method(record, "distortion", "Rate–distortion on held-out documents (lower is better)", "distortion (nats per original token)"),
        "masked_top1": curves_by_method(record, "top1", "Restored tokens on held-out documents (higher is better)", "top-1 (share of masked tokens restored)"),
    }
    if record["examples"]:
        drawn["texts"] = texts_figure(record, args.num_texts)
    else:
        print(f"{args.results_path} has no examples, so texts.png is left out; for one, run: python eval/evaluate.py --num_examples 10")
    make_output_dir(args.output_dir)
    for name, figure in drawn.items():
        with written_aside(args.output_dir / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=args.dpi)
        plt.close(figure)
        print(args.output_dir / f"{name}.png")


if __name__ == "__main__":
    run(main)
