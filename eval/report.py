"""The results of eval/evaluate.py for a reader: texts as sent and as restored, and a table of every method."""

import numpy as np

from data.sequences import pad_batch
from eval.metrics import MIN_DOCUMENTS
from models.reconstructor.masking import keep_highest


def examples(method, corpus, reconstructor, keep_ratio, count):
    """Texts token by token: `state` is "kept", "right" or "wrong"; `restored` is what the reconstructor put there.

    `importance` is the weight that the agent's TokenImportanceAttention gives the token, as a multiple of the mean.
    """
    found, texts = [], list(zip(corpus.texts, corpus.document, strict=True))
    decode = reconstructor.tokenizer.decode
    for text, document in texts[:: max(1, len(texts) // max(count, 1))][:count]:
        ids, valid = pad_batch([text], 0)
        keep_mask = keep_highest(method.scores(ids, valid, keep_ratio), valid, keep_ratio)
        restored = reconstructor.predict(ids, keep_mask).top1[0].cpu().numpy()
        state = np.where(keep_mask[0], "kept", np.where(restored == text, "right", "wrong"))
        importances = method.importances(ids, valid, keep_ratio)[0].tolist()
        pieces = [
            {"token": decode([int(t)]), "restored": decode([int(r)]), "state": str(s), "importance": round(i, 3)}
            for t, r, s, i in zip(text, restored, state, importances, strict=True)
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


def format_table(record):
    """Top-1 and nats per masked token of every method at every keep ratio, as lines of text."""
    ratios = sorted({r["keep_ratio_asked"] for r in record["results"]}, reverse=True)
    names = list(dict.fromkeys(r["method"] for r in record["results"]))
    cell = {(r["method"], r["keep_ratio_asked"]): r for r in record["results"]}
    lead_over = {(d["method"], d["keep_ratio_asked"]): d for d in record["differences"]}
    several, width = len(record["agents"]) > 1, 2 + max(map(len, ["keep ratio", *names]))

    def line(title, pairs, before="", after=None):
        after = after or [" "] * len(pairs)
        cells = (f"{before}{top1:.3f} / {before}{nats:.2f}{mark}" for (top1, nats), mark in zip(pairs, after, strict=True))
        return f"{title:{width}s}" + "".join(f"{text:^22s}" for text in cells)

    over = " and agents" if several else ""
    title = f"masked top-1 / nats per masked token, 95 % over documents{over}; * the agent's lead is significant in both"
    lines = [title, "", f"{'keep ratio':{width}s}" + "".join(f"{r:^22g}" for r in ratios)]
    for name in names:
        cells, marks = [cell[name, r] for r in ratios], ["*" if ahead(lead_over.get((name, r))) else " " for r in ratios]
        lines.append(line(name, [(c["top1"]["value"], c["nats"]["value"]) for c in cells], after=marks))
        lines.append(line("", [(half_width(c["top1"]), half_width(c["nats"])) for c in cells], before="±"))
    if several:
        spans = [[np.ptp([run[figure] for run in cell[names[0], r]["runs"]]) for figure in ("top1", "nats")] for r in ratios]
        lines += ["", line("agents apart", spans)]
        lines.append(f"agent: the mean of {len(record['agents'])} training runs; agents apart: the highest less the lowest")
    lost = [d for d in record["differences"] if d["top1"]["value"] <= 0 or d["nats"]["value"] >= 0]
    if record["documents"] < MIN_DOCUMENTS:
        few = f"only {record['documents']} documents: intervals over fewer than {MIN_DOCUMENTS} say little"
        lines += ["", f"{few}, and no difference counts as significant"]
    where = ", ".join(f"{d['method']} at {d['keep_ratio_asked']:g}" for d in lost)
    lines += ["", f"the agent does NOT lead against: {where}" if lost else "the agent leads everywhere in top-1 and nats"]
    return "\n".join(lines)


def half_width(figure):
    """Half the width of a figure's interval."""
    return float(np.ptp(figure["interval"]) / 2)


def ahead(lead):
    """Whether the agent's difference to a method is a significant lead in top-1 and nats."""
    if not lead or lead["top1"]["value"] <= 0 or lead["nats"]["value"] >= 0:
        return False
    return lead["top1"]["significant"] and lead["nats"]["significant"]
