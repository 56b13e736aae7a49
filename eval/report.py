"""The results of eval/evaluate.py for a reader: texts as sent and as restored, and a table of every method."""

import re

import numpy as np

from data.sequences import pad_batch
from eval.metrics import MIN_DOCUMENTS
from models.reconstructor.masking import keep_highest


def examples(method, corpus, reconstructor, keep_ratio, count):
    """Texts token by token: `state` is "kept", "right" or "wrong"; `restored` is what the reconstructor put there."""
    found, texts = [], list(zip(corpus.texts, corpus.document, strict=True))
    decode = reconstructor.tokenizer.decode
    for text, document in texts[:: max(1, len(texts) // max(count, 1))][:count]:
        ids, valid = pad_batch([text], 0)
        keep_mask = keep_highest(method.scores(ids, valid, keep_ratio), valid, keep_ratio)
        restored = reconstructor.predict(ids, keep_mask).top1[0].cpu().numpy()
        state = np.where(keep_mask[0], "kept", np.where(restored == text, "right", "wrong"))
        pieces = [
            {"token": decode([int(t)]), "restored": decode([int(r)]), "state": str(s)}
            for t, r, s in zip(text, restored, state, strict=True)
        ]
        found.append({"doc": str(corpus.names[document]), "keep_ratio": float(keep_mask.mean()), "pieces": pieces})
    return found


def examples_as_text(found):
    """The examples for a reader: what was sent (gaps as _), and what came back (wrong tokens as [restored|true])."""
    blocks = []
    for e in found:
        sent = "".join(p["token"] if p["state"] == "kept" else "_" for p in e["pieces"])
        back = "".join(f"[{p['restored']}|{p['token']}]" if p["state"] == "wrong" else p["restored"] for p in e["pieces"])
        blocks.append(f"=== {e['doc']}, {e['keep_ratio']:.0%} of the tokens kept\n--- sent\n{sent}\n--- restored\n{back}\n")
    return "\n".join(blocks)


def number(figure, digits=3):
    """A number, or the value of a figure {"value", "interval"}: 1.23 with two digits, .123 and −.123 with three or more."""
    text = f"{figure['value'] if isinstance(figure, dict) else figure:,.{digits}f}"
    text = re.sub(r"^(-?)0\.", r"\1.", text) if digits >= 3 else text
    return text.replace("-", "−")


def interval(figure, digits=3):
    """(low to high) of a figure, or of anything else that has an interval."""
    low, high = figure["interval"]
    return f"({number(low, digits)} to {number(high, digits)})"


def estimate(figure, digits=3):
    """A figure and its interval."""
    return f"{number(figure, digits)} {interval(figure, digits)}"


def half(figure, digits=3):
    """Half the width of a figure's interval."""
    return number(float(np.ptp(figure["interval"])) / 2, digits)


def tally(figures, digits=3):
    """Of several differences, how many have their whole interval above 0 and below it, and their mean."""
    above, below = (sum(min(sign * end for end in figure["interval"]) > 0 for figure in figures) for sign in (1, -1))
    mean = number(float(np.mean([figure["value"] for figure in figures])), digits)
    return f"{above} above 0, {below} below, of {len(figures)}; mean {mean}"


def markdown(rows):
    """Rows of text as a Markdown table, the first one its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(f"{text:{width}s}" for text, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def by_keep_ratio(record, methods=None):
    """A table of an evaluation: top-1 / nats of `methods`, default: all, by keep ratio; ± is half of the agent's interval."""
    ratios, results = sorted({r["keep_ratio_asked"] for r in record["results"]}, reverse=True), record["results"]
    rows = [["keep ratio", *map(str, ratios)]]
    for method in methods or dict.fromkeys(r["method"] for r in results):
        cells = [next(r for r in results if r["method"] == method and r["keep_ratio_asked"] == ratio) for ratio in ratios]
        bold = "**" if method == "agent" else ""
        rows.append([method, *(f"{bold}{number(c['top1'])} / {number(c['nats'], 2)}{bold}" for c in cells)])
        if bold:
            rows.append(["±", *(f"{half(c['top1'])} / {half(c['nats'], 2)}" for c in cells)])
    return markdown(rows)


def format_table(record):
    """Top-1 and nats per masked token of every method at every keep ratio, and whom the agent leads, as lines of text."""
    over = f" and {len(record['agents'])} agents, of which the first row is the mean" if len(record["agents"]) > 1 else ""
    title = f"masked top-1 / nats per masked token; ±: half of the agent's 95 % interval over documents{over}"
    lines = [title, "", by_keep_ratio(record), ""]
    if record["documents"] < MIN_DOCUMENTS:
        lines += [f"only {record['documents']} documents: with fewer than {MIN_DOCUMENTS} no difference is significant", ""]
    behind, unsure = {}, {}  # {method: keep ratios}
    for d in record["differences"]:
        ahead = d["top1"]["value"] > 0 > d["nats"]["value"]
        significant = ahead and d["top1"]["significant"] and d["nats"]["significant"]
        if not significant:
            (unsure if ahead else behind).setdefault(d["method"], []).append(f"{d['keep_ratio_asked']:g}")
    against, not_sure = ("; ".join(f"{name} at {', '.join(r)}" for name, r in some.items()) for some in (behind, unsure))
    lines.append(f"the agent does NOT lead against: {against}" if behind else "the agent leads everywhere in top-1 and nats")
    if unsure:
        lines.append(f"its lead in top-1 or nats is not significant against: {not_sure}")
    return "\n".join(lines)
