"""Tests of local search: `python eval/test_search.py` or pytest."""

import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from data.sequences import load_sequences
from eval import evaluate_price
from eval.conftest import evaluate_words, stranger
from eval.search import APART, LEAST, LOCAL, LOCAL_SEARCH, far_apart, local_search
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.words import Words

PRICE = 1.2  # at which the toy language's echoes are worth dropping


class Pairs(Words):
    """Two tokens a word, behind a first one alone."""

    def starts(self, ids, valid):
        place = torch.arange(ids.shape[1]).expand_as(ids)
        return (place == 0) | (place % 2 == 1)


def toy(stages, gaps, kind=Words):
    """The toy reconstructor, its words, and three held-out texts."""
    reconstructor = Reconstructor.load(stages[0] / "tuned", gaps=gaps)
    texts = load_sequences(stages[0] / "data/test_data.json", reconstructor.fingerprint)
    return reconstructor, kind(reconstructor.tokenizer), [texts[i] for i in range(3)]


def J_of(reconstructor, text, keep_mask, price=PRICE):
    """J of one keep mask (T,), written down once more."""
    prediction = reconstructor.predict(text[None], keep_mask[None])
    return float((price * (~keep_mask).sum() - prediction.nats.double().sum() - prediction.gaps.double().sum()) / len(text))


def flipped(words, text, keep_mask, found):
    """Every mask that differs from `keep_mask` by a word, as it would be sent."""
    starts = words.starts(torch.as_tensor(text[None]), torch.ones(1, len(text), dtype=torch.bool))[0].numpy()
    for first, last in itertools.pairwise([*np.flatnonzero(starts), len(text)]):
        mask = keep_mask.copy()
        assert len(set(mask[first:last])) == 1, "words are decided whole"
        mask[first:last] ^= True
        yield words.keeps_reading(torch.as_tensor(text), torch.as_tensor(mask)).numpy() if found else mask


@pytest.mark.parametrize(("gaps", "kind"), [("found", Words), ("told", Words), ("told", Pairs)])
def test_it_ends_where_no_flip_helps(stages, gaps, kind):
    """No worse than where it starts, and, asked again about each flip one by one, at a local optimum; nothing sent is none."""
    reconstructor, words, texts = toy(stages, gaps, kind)
    for text in texts:
        nothing = np.zeros(len(text), dtype=bool)
        end = local_search(reconstructor, words, text, nothing, PRICE)
        start, J = J_of(reconstructor, text, nothing), J_of(reconstructor, text, end.keep_mask)
        from_end, from_start = (
            max(J_of(reconstructor, text, mask) for mask in flipped(words, text, some, gaps == "found"))
            for some in (end.keep_mask, nothing)
        )
        assert end.optimal and J > start + 0.1
        assert from_end <= J + 2 * LEAST and from_start > start + 2 * LEAST
        again = local_search(reconstructor, words, text, end.keep_mask, PRICE)
        assert (again.keep_mask == end.keep_mask).all() and (again.sweeps, again.optimal) == (1, True)


def test_it_says_that_it_was_stopped(stages):
    """After one sweep it is higher, and not at an end."""
    reconstructor, words, texts = toy(stages, "found")
    text, nothing = texts[0], np.zeros(len(texts[0]), dtype=bool)
    end = local_search(reconstructor, words, text, nothing, PRICE, rounds=1)
    assert (end.sweeps, end.optimal) == (1, False)
    further = local_search(reconstructor, words, text, nothing, PRICE)
    start, after_one, at_end = (J_of(reconstructor, text, mask) for mask in (nothing, end.keep_mask, further.keep_mask))
    assert start < after_one < at_end


@pytest.mark.parametrize("gaps", ["found", "told"])
def test_it_finds_the_best_of_all_masks_from_beside_it(stages, gaps):
    """All 256 masks of eight words, one by one, as they would be sent; from every flip of the best one, it comes back."""
    reconstructor, words, texts = toy(stages, gaps)
    for text in texts:
        text = text[: words.first_of(text.tolist())[8]]
        lengths = np.diff([*words.first_of(text.tolist()), len(text)])
        masks = np.repeat(np.array(list(itertools.product([False, True], repeat=8))), lengths, 1)
        if gaps == "found":
            masks = np.stack([words.keeps_reading(torch.as_tensor(text), torch.as_tensor(mask)).numpy() for mask in masks])
        J = [J_of(reconstructor, text, mask) for mask in masks]
        best = masks[int(np.argmax(J))]
        assert 0 < best.sum() < len(text) and np.sort(J)[-1] > np.mean(J) + 0.1
        for start in flipped(words, text, best, gaps == "found"):
            end = local_search(reconstructor, words, text, start, PRICE)
            assert end.optimal and J_of(reconstructor, text, end.keep_mask) == pytest.approx(max(J), abs=1e-5)


def test_flips_made_together_are_far_apart():
    order = np.random.default_rng(0).permutation(100)
    for between in APART:
        taken = far_apart(order, between)
        assert taken[0] == order[0] and np.diff(np.sort(taken)).min() > between
        for word in set(order) - set(taken):
            rank = {w: i for i, w in enumerate(order)}
            assert any(abs(word - other) <= between and rank[other] < rank[word] for other in taken), "left out for a better one"


def test_how_much_room_there_is(stages, agents, tmp_path, capsys):
    """Local search on one text per document, at least as good there as all that it started from, and paired with the agents."""
    words = f"--prices {PRICE} --num_sequences 40 --tune_sequences 10 --methods random search".split()
    paths = ["--output_dir", tmp_path, "--model_path", *agents, "--against", stranger(agents[1], tmp_path / "elsewhere")]
    evaluate_price.main(evaluate_words(stages[0], *words, *paths))
    record = json.loads((tmp_path / "price_results.json").read_text())
    at = record["prices"][0]
    room, results = at[LOCAL], {r["method"]: r for r in at[LOCAL]["results"]}
    verified = {evaluate_price.VERIFIED, evaluate_price.AGENT_VERIFIED}
    assert {r["method"] for r in at["results"]} == {"agent", "agent, other training", "random"}
    assert set(results) == {"agent", "agent, other training", "random", LOCAL_SEARCH} | verified
    assert room["texts"] == room["documents"] == min(20, record["documents"]) == len(room["sweeps"])
    assert room["local_optima"] == room["texts"] and max(room["sweeps"]) <= room["most_sweeps"]
    best = results[LOCAL_SEARCH]["J"]
    assert best >= max(results["agent"]["runs"][0], *(results[name]["J"] for name in verified)) - 1e-5
    lead = results[LOCAL_SEARCH]["agent_leads_by"]
    assert lead["value"] == pytest.approx(results["agent"]["J"] - best, abs=1e-6)
    assert best > results["agent, other training"]["J"] + 0.1, "the toy agent may be at the top, a noisy one is not"
    printed = capsys.readouterr().out
    assert f"J of {room['texts']} texts of {room['documents']} documents" in printed and LOCAL_SEARCH in printed


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
