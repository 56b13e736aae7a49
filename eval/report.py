"""The results of eval/evaluate.py for a reader: texts as sent and as restored, and a table of every method."""

import re

import numpy as np

from data.artifacts import InputError
from eval.metrics import ALPHA, JUDGED, MIN_DOCUMENTS


def examples(corpus, masks, reconstructor):
    """The texts of a corpus token by token, masks (1, T) one by one.

    `state` is "kept", "right" or "wrong"; `restored` is what the reconstructor put there. Where gaps are to be found, also what
    was sent and what was restored from it alone, as text.
    """
    found, decode = [], reconstructor.tokenizer.decode
    for text, document, keep_mask in zip(corpus.texts, corpus.document, masks, strict=True):
        restored = reconstructor.predict(text[None], keep_mask).top1[0].cpu().numpy()
        state = np.where(keep_mask[0], "kept", np.where(restored == text, "right", "wrong"))
        pieces = [
            {"token": decode([int(t)]), "restored": decode([int(r)]), "state": str(s)}
            for t, r, s in zip(text, restored, state, strict=True)
        ]
        found.append({"doc": str(corpus.names[document]), "keep_ratio": float(keep_mask.mean()), "pieces": pieces})
        if reconstructor.found:
            sent = text[keep_mask[0]]
            found[-1] |= {"sent": decode(sent), "restored": decode(reconstructor.restore(sent))}
    return found


def examples_as_text(found):
    """The examples for a reader: what was sent and what came back.

    Gaps that are told are shown as _ and wrong tokens as [restored|true]; where they are to be found, the texts are as they are.
    """
    blocks = []
    for e in found:
        sent = "".join(p["token"] if p["state"] == "kept" else "_" for p in e["pieces"])
        back = "".join(f"[{p['restored']}|{p['token']}]" if p["state"] == "wrong" else p["restored"] for p in e["pieces"])
        sent, back = e.get("sent", sent), e.get("restored", back)
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


def markdown(rows):
    """Rows of text as a Markdown table, the first one its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(f"{text:{width}s}" for text, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


TITLES = {
    "told": "masked top-1 / nats per masked token",
    "found": "nats per original token, gaps included / word error rate of what is restored from the sent tokens alone",
}


def one(rows, **where):
    """The only one of the rows (dicts) with these values. Raises InputError."""
    found = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    if len(found) != 1:
        raise InputError(f"expected one row with {where}, found {len(found)}")
    return found[0]


def by_keep_ratio(record, methods=None):
    """A table of an evaluation: the two figures of JUDGED of `methods`, default: all, by keep ratio.

    ± is half of the agent's interval.
    """
    judged = JUDGED[record.get("gaps", "told")]
    cell = lambda c, show: " / ".join(show(c[name], digits) for name, (digits, _) in judged.items())
    ratios, results = sorted({r["keep_ratio_asked"] for r in record["results"]}, reverse=True), record["results"]
    rows = [["keep ratio", *map(str, ratios)]]
    for method in methods or dict.fromkeys(r["method"] for r in results):
        cells = [one(results, method=method, keep_ratio_asked=ratio) for ratio in ratios]
        bold = "**" if method == "agent" else ""
        rows.append([method, *(bold + cell(c, number) + bold for c in cells)])
        if bold:
            rows.append(["±", *(cell(c, half) for c in cells)])
    return markdown(rows)


def by_kind(kinds, keep_ratio):
    """A table of evaluations {kind: record} at one keep ratio: the two figures of JUDGED of every method, a column a kind."""
    judged = JUDGED[next(iter(kinds.values())).get("gaps", "told")]
    cells = {(r["method"], kind): r for kind, k in kinds.items() for r in k["results"] if r["keep_ratio_asked"] == keep_ratio}
    rows = [[str(keep_ratio), *kinds]]
    for method in dict.fromkeys(method for method, _ in cells):
        show = lambda c, each: " / ".join(each(c[name], digits) for name, (digits, _) in judged.items())
        rows.append([method, *(show(cells[method, kind], number) for kind in kinds)])
        if method == "agent":
            rows.append(["±", *(show(cells[method, kind], half) for kind in kinds)])
    return markdown(rows)


STANDINGS = ("ahead", "not distinguishable", "behind")
NAMES = {"top1": "top-1", "distortion": "nats"}  # of figures, where they are not their own


def paired(record):
    """How an evaluation at keep ratios, at prices or by a reader judges: a kind of JUDGED, what a setting is called, and the
    agent's paired differences, [(opponent, setting, {figure: difference})]."""
    if "prices" in record:
        found = [(r["method"], at["price"], {"J": r["agent_leads_by"]}) for at in record["prices"] for r in at["results"][1:]]
        return "price", "λ = ", found
    if "leads" in record:
        return "reader", "", [(d["method"], d["budget"], d) for d in record["leads"]]
    return record.get("gaps", "told"), "", [(d["method"], d["keep_ratio_asked"], d) for d in record["differences"]]


def standings(record):
    """{opponent: {standing: where, in words}}: in which judged figures and settings the agent stands how, Holm-corrected."""
    kind, unit, differences = paired(record)
    settings, found = {at for _, at, _ in differences}, {}
    for method, at, figures in differences:
        for name, (_, more) in JUDGED[kind].items():
            standing = "not distinguishable"
            if figures[name]["p_holm"] <= ALPHA:
                standing = "ahead" if (figures[name]["value"] > 0) == more else "behind"
            places = found.setdefault(method, {each: {} for each in STANDINGS})[standing]
            places.setdefault(NAMES.get(name, name.replace("_", " ")), []).append(at)

    def words(name, places):
        some = ", ".join(f"{at:g}" for at in sorted(places, reverse=kind != "price"))
        return f"{name} everywhere" if settings == set(places) and len(settings) > 1 else f"{name} at {unit}{some}"

    return {
        method: {standing: "; ".join(words(*each) for each in places.items()) for standing, places in by_standing.items()}
        for method, by_standing in found.items()
    }


def verdicts(records):
    """A table of where the agent is ahead of every opponent, behind it and not to be told from it, by `standings` of a record, or
    of several kinds' {kind: record}."""
    kinds = {"": records} if "schema" in records else records
    rows = [["kind", "opponent", *STANDINGS]]
    for kind, record in kinds.items():
        rows += [[kind, method, *places.values()] for method, places in standings(record).items()]
    return markdown([row["schema" in records :] for row in rows])


def standing_counts(*groups):
    """A table of how many kinds the agent is ahead of every opponent in / behind it, Holm-corrected, by what first judges a
    record and by setting, from groups {kind: record} of evaluations at keep ratios or at prices."""
    found, columns = {}, []
    for records in groups:
        for record in records.values():
            kind, unit, differences = paired(record)
            name, (_, more) = next(iter(JUDGED[kind].items()))
            for method, at, figures in differences:
                column = f"{NAMES.get(name, name)} at {unit}{at:g}"
                columns += [column] * (column not in columns)
                cell = found.setdefault(method, {}).setdefault(column, [0, 0])
                if figures[name]["p_holm"] <= ALPHA:
                    cell[(figures[name]["value"] > 0) != more] += 1
    rows = [["opponent", *columns]]
    shown = lambda cells, column: " / ".join(map(str, cells.get(column, [])))
    rows += [[method, *(shown(cells, column) for column in columns)] for method, cells in found.items()]
    return markdown(rows)


def sentences(record):
    """One sentence for every opponent, as lines of text: where the agent is ahead, behind, or neither."""
    kind, _, differences = paired(record)
    number = len(differences) * len(JUDGED[kind])
    lines = [f"the agent beside every other, Holm-corrected over {number} differences:"]
    documents = record.get("documents", record.get("passages"))
    if documents < MIN_DOCUMENTS:
        lines.append(f"only {documents} documents: with fewer than {MIN_DOCUMENTS} no difference is significant")
    for method, places in standings(record).items():
        lines.append(f"- {method}: " + "; ".join(f"{standing} in {where}" for standing, where in places.items() if where))
    return lines


def format_table(record):
    """The figures of JUDGED of every method at every keep ratio, and how the agent stands, as lines of text."""
    over = f" and {len(record['agents'])} agents, of which the first row is the mean" if len(record["agents"]) > 1 else ""
    title = f"{TITLES[record['gaps']]}; ±: half of the agent's 95 % interval over documents{over}"
    lines = [title, "", by_keep_ratio(record)]
    return "\n".join([*lines, "", *sentences(record)])


def by_budget(*records, figures=("recovered", "recovered_short", "survival", "continuation")):
    """A table of a reader's evaluations, each at other budgets: figures of every context, as far as there are any, by budget.

    ± is half of the agent's interval. The best `recovered` of a budget is bold.
    """
    results = [r for record in records for r in record["results"] if r["budget"]]
    budgets, digits = sorted({r["budget"] for r in results}, reverse=True), {f: 2 if f == "continuation" else 3 for f in figures}
    best = {b: max(r["recovered"]["value"] for r in results if r["budget"] == b) for b in budgets}
    rows = [["budget", *map(str, budgets)]]
    for method in dict.fromkeys(r["method"] for r in results):
        cells = {r["budget"]: r for r in results if r["method"] == method}
        texts = {b: " / ".join(number(c[f], digits[f]) for f in digits if f in c) for b, c in cells.items()}
        bold = {b: "**" if cells[b]["recovered"]["value"] == best[b] else "" for b in cells}
        rows.append([method, *(f"{bold[b]}{texts[b]}{bold[b]}" for b in budgets)])
        if method == "agent":
            spread = {b: " / ".join(half(c[f], digits[f]) for f in digits if f in c) for b, c in cells.items()}
            rows.append(["±", *(spread[b] for b in budgets)])
    return markdown(rows)


def agent_leads(*records, figure="recovered"):
    """A table of the agent's paired leads in a figure over every other context by budget, with intervals; as `by_budget`."""
    leads = [lead for record in records for lead in record["leads"]]
    budgets = sorted({d["budget"] for d in leads}, reverse=True)
    rows = [["the agent leads over", *map(str, budgets)]]
    for method in dict.fromkeys(d["method"] for d in leads):
        cells = {d["budget"]: d[figure] for d in leads if d["method"] == method}
        rows.append([method, *(estimate(cells[b]) for b in budgets)])
    return markdown(rows)


def format_reader(record):
    """What eval/evaluate_reader.py prints: the ends of the scale, the figures of every context, the agent's leads."""
    full, none = (next(r for r in record["results"] if r["method"] == name) for name in ("full", "none"))
    asked = f"{record['questions']} questions, {record['short']} with short answers, on {record['passages']} passages"
    title = f"{asked}, {record['continuations']} continuations, read by "
    lines = [f"{title}{record['reader']} ({record['dtype'].removeprefix('torch.')}); 95 % over passages"]
    ends = [f"{number(none['nats'], 2)} nats per answer without the passage, {number(full['nats'], 2)} with the whole"]
    if "continuation" in full:
        ends.append(f"a continuation {number(none['continuation'])} and {number(full['continuation'])} nats per token")
    shown = "recovered of the way between / of short answers / answers that survive"
    shown += " / nats per token of the continuation" * ("continuation" in full)
    lines += ["; ".join(ends), "", f"{shown}; ±: half of the agent's interval", "", by_budget(record)]
    return "\n".join(lines + (["", agent_leads(record), "", *sentences(record)] if record["leads"] else []))
