"""Figures that compare methods: against the keep ratio, kind by kind, and by what a language model makes of them."""

import re

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from data.artifacts import InputError

# One colour and marker per method in every figure; colours from the palettes of Okabe and Ito and of Tol for the colour-blind.
STYLE = {
    "agent": ("#D55E00", "o"), "agent, other training": ("#000000", "*"), "critic alone": ("#882255", "h"),
    "learned proposer": ("#332288", "p"), "verified once": ("#E69F00", "P"),
    "verified twice": ("#8C5A00", "X"), "mean nats under random masks": ("#CC79A7", "v"),
    "causal surprisal": ("#0072B2", "s"), "iterative surprisal": ("#56B4E9", "D"), "token frequency": ("#009E73", "^"),
    "whole sentences": ("#999933", ">"), "head": ("#44AA99", "<"), "tail": ("#661100", "d"), "thinned": ("#B8A000", "H"),
    "LLMLingua": ("#AA4499", "8"), "random": ("#7F7F7F", "x"),
}
NEUTRAL, OTHERS = "#555555", ("1", "2", "3", "4", "+", "|")  # colour and markers of methods that are not in STYLE
NATS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # ticks


def styles(methods):
    """{method: (colour, marker, filled)}. A variant, "agent, restored" or "random words", is a hollow marker of its method."""
    found, strangers = {}, 0
    for method in methods:
        base = next((name for name in (method, method.split(",")[0], method.removesuffix(" words")) if name in STYLE), None)
        found[method] = (*STYLE[base], base == method) if base else (NEUTRAL, OTHERS[strangers % len(OTHERS)], True)
        strangers += base is None
    return found


def series(record, method, name):
    """x = keep ratio, y, low, high of a figure of merit over the keep ratios of one method, sorted by x."""
    rows = sorted((r for r in record["results"] if r["method"] == method), key=lambda r: r["keep_ratio"])
    return np.array([[r["keep_ratio"], r[name]["value"], *r[name]["interval"]] for r in rows]).T


def draw_curves(axis, record, name, style, bands):
    """The lines of a record's methods, the agent's bold; 95 % bands of the methods in `bands`, the agent always has one."""
    for method in dict.fromkeys(r["method"] for r in record["results"]):
        colour, marker, filled = style[method]
        x, y, low, high = series(record, method, name)
        ours = method == "agent"
        if ours or method in bands:
            axis.fill_between(x, low, high, color=colour, alpha=0.15 + 0.1 * (ours and not bands), linewidth=0)
        thick = {"linewidth": 2.4, "zorder": 3} if ours else {"linewidth": 1.6 if bands else 1.1, "zorder": 2}
        runs = f", mean of {len(record['agents'])}" if ours and len(record["agents"]) > 1 else ""
        face = colour if filled else "white"
        size = 6 if ours or bands else 4
        axis.plot(x, y, color=colour, marker=marker, markersize=size, markerfacecolor=face, label=method + runs, **thick)
    axis.grid(alpha=0.25)


def curves_by_method(record, name, title, unit):
    """One line with a 95 % band per method, against the keep ratio."""
    figure, axis = plt.subplots(figsize=(7.5, 5.2), layout="constrained")
    style = styles(dict.fromkeys(r["method"] for r in record["results"]))
    draw_curves(axis, record, name, style, style)
    axis.set(title=title, xlabel="keep ratio (tokens sent per original token)", ylabel=unit)
    axis.invert_xaxis()
    axis.legend(frameon=False)
    over = " and agents" if len(record["agents"]) > 1 else ""
    texts = f"{record['texts']} texts of {record['documents']} documents; bands: 95 %, over documents{over}"
    figure.supxlabel(texts, fontsize=8, color="#555555")
    return figure


def panels_by_kind(records):
    """Of {kind: evaluation results} nats against the keep ratio: a panel a kind, one scale and legend; only the agent's band."""
    columns = min(len(records), 3 if len(records) in (3, 5, 6, 9) else 4)
    rows = -(-len(records) // columns)
    size = (1.0 + 2.9 * columns, 1.3 + 2.7 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False)
    style = styles(dict.fromkeys(r["method"] for record in records.values() for r in record["results"]))
    labels = {}
    for axis, (kind, record) in zip(axes.flat, records.items(), strict=False):
        draw_curves(axis, record, "distortion", style, ())
        axis.set_title(f"{kind.replace('-', ' ')} ({record['documents']} documents)", fontsize=10)
        drawn = zip(*axis.get_legend_handles_labels(), strict=True)
        labels |= {re.sub(r"^agent(, mean of \d+)?$", "agent (band: 95 %)", label): line for line, label in drawn}
    for axis in axes.flat[len(records) :]:
        axis.set_axis_off()
    first = axes.flat[0]
    first.set_yscale("log")
    plain = FuncFormatter(lambda nats, _: f"{nats:g}")
    first.yaxis.set(major_locator=FixedLocator(NATS), minor_locator=NullLocator(), major_formatter=plain)
    first.invert_xaxis()
    figure.supxlabel("keep ratio (tokens sent per original token)", fontsize=10)
    figure.supylabel("nats per original token, log scale", fontsize=10)
    figure.legend(labels.values(), labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False, fontsize=9)
    return figure


def reader_figure(records):
    """What a reader recovers of its answers: a panel a budget, a row a context; hollow: short answers alone."""
    panels = sorted(((r["budget"], record) for record in records for r in record["results"] if r["budget"]), key=lambda p: -p[0])
    panels = {(budget, id(record)): record for budget, record in panels}
    if not panels:
        raise InputError("results of a reader: expected some at a budget, found none; run again: python eval/evaluate_reader.py")
    methods = list(dict.fromkeys(r["method"] for record in records for r in record["results"] if r["budget"]))
    style = styles(methods)
    size = (2.2 + 2.5 * len(panels), 1.5 + 0.27 * len(methods))
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False)
    for axis, ((budget, _), record) in zip(axes.flat, panels.items(), strict=True):
        found = {r["method"]: r for r in record["results"] if r["budget"] == budget}
        best = max(r["recovered"]["value"] for r in found.values())
        axis.axvline(best, color="#BBBBBB", linewidth=0.8, zorder=1)
        for row, method in enumerate(methods):
            if method not in found:
                continue
            colour, bold = style[method][0], method == "agent"
            for y, name, face in ((row - 0.13, "recovered", colour), (row + 0.17, "recovered_short", "white")):
                value, interval = found[method][name]["value"], found[method][name]["interval"]
                axis.plot(interval, [y, y], color=colour, linewidth=2.2 if bold else 1.2, alpha=1.0 if face == colour else 0.5)
                axis.plot(value, y, "o", color=colour, markerfacecolor=face, markersize=6 if bold else 4.5, zorder=3)
        axis.set_title(f"{budget:g} of the tokens\n{record['questions']} questions", fontsize=10)
        axis.grid(axis="x", alpha=0.25)
    axes.flat[0].set_yticks(range(len(methods)), methods, fontsize=9)
    axes.flat[0].invert_yaxis()
    for label in axes.flat[0].get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == "agent" else "normal")
    figure.supxlabel("share of the way from no passage (0) to the whole one (1), in nats of the answer", fontsize=10)
    marks = [plt.Line2D([], [], color="#333333", marker="o", linestyle="", markerfacecolor=face) for face in ("#333333", "white")]
    short = "of answers of up to three words (bars: 95 % over passages; grey line: the most of all answers)"
    figure.legend(marks, ["of all answers", short], loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return figure
