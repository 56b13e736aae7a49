"""Tests of the gap head, of what is sent and of who pays for it: `python models/reconstructor/test_gaps.py` or pytest."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data.artifacts import InputError
from data.testing.toy import Planted
from models.reconstructor.conftest import WIDTH, random_head, some_masks, tiny
from models.reconstructor.gaps import CLASSES, GAP_HEAD, GapHead, at_places, load_gap_head, save_gap_head, send, shares
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, locate

# --- the head


def test_the_probabilities_of_all_gaps_sum_to_1():
    """Those up to a bound, and what the geometric tail has left beyond it, in closed form."""
    head, states = random_head(), torch.randn(3, 5, WIDTH)
    log_p, end = head(states)
    assert log_p.shape == (3, 5, CLASSES + 1)
    for bound in (CLASSES + 30, CLASSES + 1, CLASSES):
        within = sum((-head.nats(states, torch.full((3, 5), g))).exp() for g in range(bound + 1))
        beyond = log_p[..., -1].exp() * (1 - end.sigmoid()) ** (bound - CLASSES + 1)
        torch.testing.assert_close(within + beyond, torch.ones(3, 5))
    assert beyond.max() > 0.01, "a gap longer than any seen has a probability"
    one = head.nats(states, torch.full((3, 5), 10_000))
    assert torch.isfinite(one).all()


def test_a_new_head_knows_nothing():
    head, states = GapHead(WIDTH), torch.randn(2, 3, WIDTH)
    for gap, p in ((0, 1 / 8), (CLASSES - 1, 1 / 8), (CLASSES, 1 / 16), (CLASSES + 2, 1 / 64)):
        torch.testing.assert_close((-head.nats(states, torch.full((2, 3), gap))).exp(), torch.full((2, 3), p))


def test_the_likeliest_gap_is_that_of_the_head_or_the_tails_mean():
    head, states = GapHead(WIDTH), torch.zeros(1, 2, WIDTH)
    with torch.no_grad():
        for gap in range(CLASSES):
            head.out.bias.copy_(torch.eye(CLASSES + 2)[gap])
            assert head.likeliest(states).tolist() == [[gap, gap]]
        head.out.bias.copy_(torch.eye(CLASSES + 2)[CLASSES])
        for end, further in ((0.0, 1), (-torch.log(torch.tensor(4.0)), 4), (9.0, 0), (-99.0, 1000)):  # (1 - q) / q
            head.out.bias[-1] = end
            assert head.likeliest(states).tolist() == [[CLASSES + further] * 2]


# --- what is sent


def test_what_is_sent_is_that_of_loops():
    ids, keep_mask, valid = some_masks()
    sent = send(ids, keep_mask, valid)
    for row in range(len(ids)):
        length = int(valid[row].sum())
        kept = [i for i in range(length) if keep_mask[row, i]]
        places = [0, *(i + 1 for i in kept)]
        gaps = [after - before - 1 for before, after in zip(places, [*places[1:], length + 1])]
        count = len(kept)
        assert sent.ids[row, :count].tolist() == ids[row, kept].tolist()
        assert sent.valid[row].tolist() == [True] * count + [False] * (sent.valid.shape[1] - count)
        assert sent.place[row, : count + 1].tolist() == places and sent.gaps[row, : count + 1].tolist() == gaps
        assert not sent.gaps[row, count + 1 :].any() and sum(gaps) + count == length
    boundary = torch.rand(sent.gaps.shape) + 1  # padding of `sent` is no zero
    placed = at_places(boundary, sent, ids.shape[1])
    for row in range(len(ids)):
        count = int(sent.valid[row].sum()) + 1
        expected = dict(zip(sent.place[row, :count].tolist(), boundary[row, :count].tolist()))
        assert placed[row].tolist() == [expected.get(i, 0.0) for i in range(ids.shape[1] + 1)]


def test_nobody_sends_texts_and_texts_of_nothing():
    nothing = torch.zeros(0, 4, dtype=torch.long)
    assert send(nothing, nothing > 0, nothing > 0).ids.shape == (0, 0)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    sent = send(empty.long(), ~empty, empty)
    assert sent.ids.shape == (2, 0) and sent.gaps.tolist() == sent.place.tolist() == [[0], [0]]


def shares_by_loops(boundary, kept, length):
    """Of one text: boundary (T + 1) values, kept a list of T bools."""
    found, places = [0.0] * len(kept), [0, *(i + 1 for i in range(length) if kept[i])]
    for before, after in zip(places, [*places[1:], length + 1]):
        beside = [p for p in (before, after) if 1 <= p <= length]
        payers = range(before + 1, after) if after - before > 1 else beside
        for place in payers:
            found[place - 1] += boundary[before] / len(payers)
    return found


def test_shares_are_those_of_loops_and_add_up():
    ids, keep_mask, valid = some_masks()
    sent = send(ids, keep_mask, valid)
    boundary = at_places(torch.rand(sent.gaps.shape), sent, ids.shape[1])
    found = shares(boundary, keep_mask, valid)
    torch.testing.assert_close(found.sum(1), boundary.sum(1))
    by_loops = [shares_by_loops(*(x.tolist() for x in row), length) for *row, length in zip(boundary, keep_mask, valid.sum(1))]
    torch.testing.assert_close(found, torch.tensor(by_loops))
    assert not found[~valid].any()
    other = shares(boundary, keep_mask.roll(1, 0), valid)  # the control: those of other masks
    assert not torch.allclose(other, found, atol=0.05)


# --- files


def test_a_head_goes_to_a_file_and_back(tmp_path):
    head, states = random_head(), torch.randn(2, 4, WIDTH)
    assert load_gap_head(tmp_path, WIDTH) is None
    for dtype, close in ((torch.float32, 0), (torch.float16, 1e-2)):
        save_gap_head(head, tmp_path, dtype)
        assert [p.name for p in tmp_path.iterdir()] == [GAP_HEAD] and load_file(tmp_path / GAP_HEAD)["out.bias"].dtype == dtype
        again = load_gap_head(tmp_path, WIDTH)
        assert not again.training and again.out.bias.dtype == torch.float32
        for ours, theirs in zip(head(states), again(states), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


DAMAGE = {
    "of another width": lambda path: save_gap_head(GapHead(WIDTH + 1, 6), path.parent),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "without a part": lambda path: save_file({k: v for k, v in load_file(path).items() if k != "out.bias"}, path),
    "of something else": lambda path: save_file({"weight": torch.zeros(3)}, path),
    "a pickle": lambda path: torch.save(Planted(path.parent / "planted"), path),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_head_is_refused_in_one_line(tmp_path, name):
    save_gap_head(random_head(), tmp_path)
    DAMAGE[name](tmp_path / GAP_HEAD)
    with pytest.raises(InputError, match=f"expected the gap head of a model of width {WIDTH}, found: .*train_cpu.py") as refused:
        load_gap_head(tmp_path, WIDTH)
    assert "\n" not in str(refused.value) and not (tmp_path / "planted").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_that_is_not_finite_is_refused_in_one_line(tmp_path, value):
    head = random_head()
    head.out.bias.data[3] = value
    save_gap_head(head, tmp_path)
    with pytest.raises(InputError, match="expected finite weights, found NaN or infinity") as refused:
        load_gap_head(tmp_path, WIDTH)
    assert "\n" not in str(refused.value)


def test_a_reconstructor_says_whether_it_finds_gaps_and_stays_a_stock_model(tmp_path):
    batch, finder = some_masks(3), tiny()
    finder.save(tmp_path / "found", args=argparse.Namespace())
    assert json.loads((tmp_path / "found/reconstructor.json").read_text())["gaps"] == ["found", "told"]
    again, told = (Reconstructor.load(tmp_path / "found", gaps=gaps) for gaps in ("found", "told"))
    torch.testing.assert_close(again.predict(*batch).gaps, finder.predict(*batch).gaps)
    assert not told.predict(*batch).gaps.any()
    torch.testing.assert_close(told.predict(*batch).nats, again.predict(*batch).nats)
    told.save(tmp_path / "again", args=argparse.Namespace())
    assert (tmp_path / "again" / GAP_HEAD).exists(), "a head stays with its model"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "found")
    ids = torch.arange(3)[None]
    torch.testing.assert_close(stock(ids).logits, finder.model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_reconstructor_without_a_head_is_refused_where_gaps_are_to_be_found(tmp_path):
    plain = tiny()
    plain.gap_head, plain.found = None, False
    plain.save(tmp_path, args=argparse.Namespace())
    assert json.loads((tmp_path / "reconstructor.json").read_text())["gaps"] == ["told"] and not (tmp_path / GAP_HEAD).exists()
    with pytest.raises(InputError, match="expected a reconstructor that finds gaps, found no gap head .*--gaps told") as refused:
        Reconstructor.load(tmp_path, gaps="found")
    assert "\n" not in str(refused.value)
    new = Reconstructor.from_base(tmp_path, gaps="found")
    assert new.found and not new.gap_head.out.weight.any(), "training begins with a new one"
    assert Reconstructor.from_base(tmp_path).gap_head is None


def test_the_embedded_base_finds_gaps():
    base = Reconstructor.load(BASE_MODEL, gaps="found")
    assert torch.equal(base.gap_head.out.bias, load_file(Path(locate(BASE_MODEL)) / GAP_HEAD)["out.bias"].float())
    ids = torch.tensor([base.tokenizer("I have the honor to report to the Congress on the state of the Union.")["input_ids"]])
    kept = torch.ones_like(ids) > 0
    kept[0, 2:4] = False  # "the honor"
    gaps = [base.predict(ids, mask).gaps.sum().item() for mask in (kept, torch.ones_like(kept))]
    assert gaps[1] < gaps[0] < 0.5 * ids.numel() * torch.tensor(8.0).log(), "better than one that knows nothing"

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
