"""Tests of the evaluation at a price: `python eval/test_price.py` or pytest."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from data.sequences import load_sequences
from eval import evaluate_price
from eval.choosing import Rule, Rules
from eval.conftest import evaluate_words, stranger
from eval.metrics import reward
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.scoring import verify
from models.reconstructor.words import Words


@pytest.mark.parametrize("gaps", ["told", "found"])
def test_verified_masks_hide_nothing_dear(stages, gaps):
    reconstructor = Reconstructor.load(stages[0] / "tuned", gaps=gaps)
    text, words = load_sequences(stages[0] / "data/test_data.json", reconstructor.fingerprint)[0], Words(reconstructor.tokenizer)
    found = verify(reconstructor, words, text, np.zeros(len(text), bool), 1.2)
    assert 0 < found.masked.sum() < len(text) and reward(found.sums, 1.2) > 0.2
    assert ((found.nats + found.gaps)[found.masked] <= 1.2).all() and found.gaps.any() == (gaps == "found")
    prediction = reconstructor.predict(text[None], ~found.masked)
    np.testing.assert_allclose(found.nats, prediction.nats, rtol=1e-5)
    np.testing.assert_allclose(found.gaps, prediction.gaps, rtol=1e-5)


def test_words_are_verified_whole(stages):
    """Two tokens a word: of a word that is dear in the mean both are sent, of another neither."""

    class Pairs(Words):
        def starts(self, ids, valid):
            place = torch.arange(ids.shape[1]).expand_as(ids)
            return (place == 0) | (place % 2 == 1)

    reconstructor = Reconstructor.load(stages[0] / "tuned")
    text = load_sequences(stages[0] / "data/test_data.json", reconstructor.fingerprint)[0]
    nats = reconstructor.predict(text[None], np.zeros((1, len(text)), bool)).nats.numpy()
    price = float(np.median(nats[0, 1:-1].reshape(-1, 2).mean(1)))
    found = verify(reconstructor, Pairs(reconstructor.tokenizer), text, np.zeros(len(text), bool), price)
    pairs = found.masked[0, 1:-1].reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all() and 0 < pairs.sum() < pairs.size
    costs = found.nats[0, 1:-1].reshape(-1, 2)
    assert (costs.mean(1) <= price).all() and (costs > price).any(), "one of the two may be dear"


@pytest.mark.parametrize("price", np.linspace(0, 1, 23))
def test_a_rule_is_found_without_trying_all(price):
    class Hill(Rules):
        def __init__(self):
            self.method, self.asked = None, set()
            self.kinds = [[Rule(None, keep_ratio=r) for r in np.linspace(0, 1, n)] for n in (43, 19)]

        def J(self, rule, price):
            self.asked.add(rule)
            return -((rule.keep_ratio - price) ** 2)

    hill = Hill()
    best = max((rule for kind in hill.kinds for rule in kind), key=lambda rule: hill.J(rule, price))
    hill.asked.clear()
    assert hill.best(price).keep_ratio == best.keep_ratio and len(hill.asked) < sum(map(len, hill.kinds)) / 2


def test_the_evaluation_at_a_price(stages, agents, tmp_path, capsys):
    """On the toy language the agent at λ = 1.2 drops echoes: nearly λ / 2, as no rule for all texts does better.

    To send everything costs what it takes to find that nothing is missing.
    """
    words = "--prices 0.01 1.2 90 --num_sequences 20 --tune_sequences 10"
    evaluate_price.main(evaluate_words(stages[0], *words.split(), "--output_dir", tmp_path, "--model_path", *agents))
    record = json.loads((tmp_path / "price_results.json").read_text())
    cheap, middle, dear = ({r["method"]: r for r in at["results"]} for at in record["prices"])
    assert cheap["random"]["rule"] == "everything kept" and -0.1 < cheap["random"]["J"] < 0
    assert dear["random"]["rule"] == "nothing kept" and dear["random"]["keep_ratio"] == 0, "no token is worth a price of 90"
    methods = {"agent", "random", "token frequency", "causal surprisal", "iterative surprisal", "verified once"}
    assert set(middle) == methods | {evaluate_price.VERIFIED, evaluate_price.AGENT_VERIFIED}
    agent, verified = middle["agent"], middle[evaluate_price.AGENT_VERIFIED]
    assert verified["J"] >= agent["runs"][0] - 1e-3, "what is dear is sent"
    assert agent["J"] == pytest.approx(np.mean(agent["runs"])) and len(agent["runs"]) == 2
    assert 0.6 > agent["J"] > 0.5 > middle["random"]["J"] > -0.1
    assert (record["gaps"], record["unit"], record["receivers"]["agent"]) == ("found", "word", str(stages[0] / "tuned"))
    for r in middle.values():
        assert r["interval"][0] <= r["J"] <= r["interval"][1]
        if lead := r.get("agent_leads_by"):
            theirs = agent["runs"][0] if r is verified else agent["J"]
            assert lead["value"] == pytest.approx(theirs - r["J"], abs=1e-6)
            assert ("interval_over_documents" in lead) == (r is not verified) and lead["p"] <= lead["p_holm"]
    assert "agent leads by" in (printed := capsys.readouterr().out)
    assert f"over {3 * (len(middle) - 1)} differences:\n- " in printed and "\n- random: " in printed, "all prices together"


def test_at_a_price_the_search_can_be_left_out_or_be_all(stages, agents, tmp_path):
    """And an agent of another training is paired with the agent: the same one leads itself by nothing."""
    found = {}
    for methods, against in (("random", agents[0]), ("verified", stranger(agents[1], tmp_path / "elsewhere"))):
        words = f"--prices 1.2 --num_sequences 20 --tune_sequences 10 --methods {methods}".split()
        paths = ["--output_dir", tmp_path, "--model_path", agents[0], "--against", against]
        evaluate_price.main(evaluate_words(stages[0], *words, *paths))
        results = json.loads((tmp_path / "price_results.json").read_text())["prices"][0]["results"]
        found[methods] = {r["method"]: r for r in results}
    other = "agent, other training"
    assert list(found["random"]) == ["agent", other, "random"]
    assert list(found["verified"]) == ["agent", other, evaluate_price.VERIFIED, evaluate_price.AGENT_VERIFIED]
    assert found["verified"][evaluate_price.VERIFIED]["rule"] == "from nothing sent"
    assert found["random"]["random"]["agent_leads_by"]["significant"]
    assert not found["random"][other]["agent_leads_by"]["significant"]
    assert found["random"][other]["agent_leads_by"]["value"] == 0 != found["verified"][other]["agent_leads_by"]["value"]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
