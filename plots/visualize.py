"""Draw the figures: training curves, rate–distortion, masked top-1, and texts as they are sent and as they are restored.

    python plots/visualize.py --log_dir models/agent/output/tb_logs --results_path eval/test_output/evaluation_results.json \\
        --output_dir plots/output

Reads only what rl/train.py logged for TensorBoard and what evaluations wrote, each where it is there; computes no results of its
own. Writes `training_curves.png` from the log; `rate_distortion.png`, `masked_top1.png` and, if they have examples, `texts.png`
from the results of one evaluation; `rate_distortion_by_kind.png`, a panel each, from those of several, whose folders are named
after the kinds; `reader.png` from those of eval/evaluate_reader.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a $ in a text or in a name is one
import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.artifacts import InputError, Parser, bounded, run, written_aside
from data.letters import shown
from data.scratch import claimed
from eval.records import EVALUATION, READER, read_results
from plots.panels import curves_by_method, panels_by_kind, reader_figure
from plots.texts import texts_figure

LOGS, RESULTS = Path("models/agent/output/tb_logs"), Path("eval/test_output/evaluation_results.json")
CURVES = (
    ("rollout/J", "J in training", "nats per original token"), ("eval/J", "J on held-out texts", "nats per original token"),
    ("rollout/keep_ratio", "keep ratio in training", "kept per original token"),
    ("rollout/nats", "reconstruction loss in training", "nats per masked token"),
    ("rollout/top1", "masked top-1 in training", "share of masked tokens"),
    ("train/entropy", "policy entropy", "nats per decision"),
    ("train/clip_fraction", "clip fraction", "share of decisions"),
    ("time/decisions_per_second", "throughput", "decisions per second"),
)


def training_curves(log_dir):
    """The figure of CURVES. Raises FileNotFoundError if there is no log, InputError if it has not every curve."""
    if not any(log_dir.glob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{log_dir}: expected TensorBoard event files, found none. Train with: python rl/train.py")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0}).Reload()  # damaged ones end where they are damaged
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


def drawable(value):
    """A value of JSON, every text in it of letters that can be drawn."""
    if isinstance(value, list):
        return [drawable(each) for each in value]
    if isinstance(value, dict):
        return {name: drawable(each) for name, each in value.items()}
    return shown(value) if isinstance(value, str) else value


def figures_of(paths, num_texts):
    """{name: figure} of results, by their schemas: of one evaluation its curves and texts, of several their panels."""
    evaluations, readers = {}, []
    for path in paths:
        if path.is_file() and b'"rltc.reader/' in path.read_bytes()[:200]:
            readers.append(drawable(read_results(path, READER)))
        else:
            evaluations[path] = drawable(read_results(path, EVALUATION))
    drawn = {"reader": reader_figure(readers)} if readers else {}
    if len(evaluations) > 1:
        kinds = {shown(path.resolve().parent.name): record for path, record in evaluations.items()}
        if len(kinds) < len(evaluations):
            raise InputError("expected results in folders of different names, one a kind, found two of the same name")
        return drawn | {"rate_distortion_by_kind": panels_by_kind(kinds)}
    for path, record in evaluations.items():
        title, unit = "Rate–distortion on held-out documents (lower is better)", "distortion (nats per original token)"
        drawn["rate_distortion"] = curves_by_method(record, "distortion", title, unit)
        title, unit = "Restored tokens on held-out documents (higher is better)", "top-1 (share of masked tokens restored)"
        drawn["masked_top1"] = curves_by_method(record, "top1", title, unit)
        if record["examples"]:
            drawn["texts"] = texts_figure(record["examples"][:num_texts])
        else:
            print(f"{path} has no examples for texts.png; for some: python eval/evaluate.py --num_examples 10")
    return drawn


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--log_dir", type=Path, default=None, help=f"TensorBoard log of rl/train.py; default: {LOGS}, if it is there")
    results = "results of eval/evaluate.py or eval/evaluate_reader.py, one or several"
    add("--results_path", type=Path, nargs="+", default=None, help=f"{results}; default: {RESULTS}, if they are there")
    add("--output_dir", type=Path, default=Path("plots/output"), help="directory for the figures")
    add("--num_texts", type=bounded(int, 1, 100), default=3, help="example texts in texts.png")
    add("--dpi", type=bounded(int, 30, 1200), default=130, help="resolution, dots per inch")
    args = parser.parse_args(argv)
    if args.log_dir is None and args.results_path is None:
        args.log_dir = LOGS if LOGS.is_dir() else None
        args.results_path = [RESULTS] if RESULTS.is_file() else None
    return args


def main(argv=None):
    args, drawn = parse_args(argv), {}
    if args.log_dir is None and args.results_path is None:
        commands = "python rl/train.py or python eval/evaluate.py"
        raise FileNotFoundError(f"expected a log in {LOGS} or results in {RESULTS}, found neither; run: {commands}")
    if args.results_path:
        drawn |= figures_of(args.results_path, args.num_texts)
    if args.log_dir:
        drawn["training_curves"] = training_curves(args.log_dir)
    with claimed(args.output_dir):
        for name, figure in drawn.items():
            with written_aside(args.output_dir / f"{name}.png") as temporary:
                figure.savefig(temporary, dpi=args.dpi)
            plt.close(figure)
            print(args.output_dir / f"{name}.png")


if __name__ == "__main__":
    run(main)
