"""Results of evaluations as files: their schemas, and the shapes (data/shapes.py) that tables, verdicts and figures need."""

from typing import NamedTuple

from data.artifacts import check_shape, plain_json, read_json
from data.shapes import ANY_KEY, NUMBER, TEXT, among, count, optional
from eval.metrics import JUDGED

FIGURE = {"value": NUMBER, "interval": (NUMBER, NUMBER)}
LEAD = {"value": NUMBER, "p_holm?": NUMBER}  # results from before the correction have none
WAYS = {"documents": {ANY_KEY: NUMBER}, "joined": {ANY_KEY: NUMBER}}
PIECE = {"restored": TEXT, "state": among("kept", "right", "wrong")}


class Results(NamedTuple):
    """A kind of results: its schema, the script that writes it, and what its readers use."""

    schema: str
    made_by: str
    shape: dict


EVALUATION = Results("rltc.evaluation/3", "eval/evaluate.py", {
    "texts": count(1), "documents": count(1), "agents": [TEXT, ...], "gaps?": among("told", "found"),
    "results": [{
        "method": TEXT, "keep_ratio_asked": NUMBER, "keep_ratio": NUMBER, "top1": FIGURE, "distortion": FIGURE,
    }, ...],
    "differences": [{"method": TEXT, "keep_ratio_asked": NUMBER}],
    "examples": [{"doc": TEXT, "pieces": [PIECE, ...]}],
})
PRICE = Results("rltc.price_evaluation/4", "eval/evaluate_price.py", {"prices": [{"price": NUMBER, "results": [{
    "method": TEXT, "J": NUMBER, "interval": (NUMBER, NUMBER), "keep_ratio": NUMBER, "agent_leads_by?": LEAD,
}, ...]}, ...]})
READER = Results("rltc.reader/1", "eval/evaluate_reader.py", {
    "questions": count(1), "leads": [{"method": TEXT, "budget": NUMBER, "recovered": LEAD}],
    "results": [{"method": TEXT, "budget": optional(NUMBER), "recovered": FIGURE, "recovered_short": FIGURE}, ...],
})
LOSSLESS = Results("rltc.lossless_evaluation/1", "eval/evaluate_lossless.py", {
    "corpora": [{
        "corpus": TEXT, "sent": optional(NUMBER), "bits_per_byte": WAYS,
        "seconds_per_1000_tokens": {"encode": NUMBER, "decode": NUMBER},
    }, ...],
    "together": {"bits_per_byte": WAYS, "with_model": WAYS},
})
KINDS = {kind.schema: kind for kind in (EVALUATION, PRICE, READER, LOSSLESS)}


def read_results(path, kind):
    """The record of results of a kind. Raises FileNotFoundError or InputError."""
    return checked(path, read_json(path, kind.schema, kind.made_by))


def read_any(path):
    """The JSON in a file; results of a known kind are checked as `read_results` does. Raises OSError or InputError."""
    return checked(path, plain_json(path, path.read_bytes(), "write it again"))


def checked(path, record):
    """A record, if it is not of a known kind that has another shape. Raises InputError."""
    kind = KINDS.get(str(record.get("schema"))) if isinstance(record, dict) else None
    if kind:
        remedy = f"write it again with: python {kind.made_by}"
        check_shape(path, record, kind.shape, remedy)
        if kind is EVALUATION:  # how it is judged depends on what the receiver has to find
            judged = JUDGED[record.get("gaps", "told")]
            figures, leads = (dict.fromkeys(judged, shape) for shape in (FIGURE, {**LEAD, "p_holm": NUMBER}))
            check_shape(path, record, {"results": [figures], "differences": [leads]}, remedy)
    return record
