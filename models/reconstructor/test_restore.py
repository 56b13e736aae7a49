"""Tests of restoring a text from what was sent and nothing else: `python models/reconstructor/test_restore.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from data.sequences import load_sequences
from models.reconstructor.conftest import tiny
from models.reconstructor.gaps import CLASSES
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.test_checkpoints import fine_tune


@pytest.fixture(scope="module")
def finder(toy, tmp_path_factory):
    """The toy reconstructor, used to texts whose echoes are dropped, because they are frequent."""
    folder = tmp_path_factory.mktemp("finder")
    words = "--mask_policy frequency --policy_share 0.8 --mask_ratio 0.4 --max_steps 150 --batch_size 32 --eval_steps 150"
    fine_tune(toy, folder, *words.split())
    return Reconstructor.load(folder, gaps="found")


@pytest.fixture(scope="module")
def texts(toy, finder):
    return np.stack(list(load_sequences(toy / "data/test_data.json", finder.fingerprint)))


def expecting(gap, positions=12):
    """A reconstructor that expects this gap everywhere."""
    reconstructor = tiny(positions=positions)
    with torch.no_grad():
        for parameter in reconstructor.gap_head.parameters():
            parameter.zero_()
        reconstructor.gap_head.out.bias[min(gap, CLASSES)] = 5.0
        if gap >= CLASSES:
            reconstructor.gap_head.out.bias[-1] = -float(np.log(max(gap - CLASSES, 1e-9)))  # the mean of the tail
    return reconstructor


def test_dropped_echoes_come_back_and_texts_sent_whole_stay_whole(finder, texts):
    echo = np.isin(texts, finder.tokenizer.convert_tokens_to_ids(list("ABCD")))
    right = [np.array_equal(finder.restore(text[~dropped]), text) for text, dropped in zip(texts, echo, strict=True)]
    assert np.mean(right) > 0.9 and len(right) > 20
    whole = [np.array_equal(finder.restore(text), text) for text in texts]
    assert np.mean(whole) > 0.9
    chance = np.random.default_rng(0).permuted(echo, axis=1)  # the control: as many tokens, but any
    wrong = [np.array_equal(finder.restore(text[~dropped]), text) for text, dropped in zip(texts, chance, strict=True)]
    assert np.mean(wrong) < 0.2


def test_what_was_sent_comes_back_in_order_with_so_many_tokens_between(finder):
    """By hand: the likeliest gap at every boundary, then the likeliest token at every place."""
    for gap in (0, 1, 2, CLASSES + 3):
        model = expecting(gap, positions=60)
        for sent in ([], [1], [2, 1], [0, 2, 2]):
            found = model.restore(sent)
            assert found.dtype == torch.int64 and len(found) == len(sent) + gap * (len(sent) + 1)
            kept = torch.zeros(len(found), dtype=torch.bool)
            kept[gap :: gap + 1] = True
            kept = kept & (torch.arange(len(found)) < len(found) - gap)
            assert found[kept].tolist() == sent
            if len(found):
                top1 = model.predict(torch.where(kept, found, 0)[None], kept[None]).top1[0]
                assert found.tolist() == top1.tolist()
    tokens = finder.tokenizer.convert_tokens_to_ids(["a", "b"])
    for sent in (np.array(tokens, dtype=np.int32), torch.tensor(tokens), tokens):  # any kind of integers
        assert finder.restore(sent).tolist() == finder.restore(tokens).tolist()


def test_many_texts_come_back_as_each_does_alone(finder, texts):
    sent = [text[: 1 + i] for i, text in enumerate(texts[:9])] + [[]]
    together = finder.fill(sent)
    for tokens, (ids, kept) in zip(sent, together, strict=True):
        assert ids.tolist() == finder.restore(tokens).tolist() and ids[kept].tolist() == list(tokens)
    assert len({len(ids) for ids, _ in together}) > 2, "padding is tested"


def test_it_gets_no_longer_than_can_be_read():
    model = expecting(3)  # 11 tokens at most
    assert len(model.restore([1])) == 7 and len(model.restore([1, 2])) == 11
    assert len(model.restore([1, 2, 1])) == 9, "3 tokens and 2 gaps; a third gap has no room"
    assert model.restore([1, 2] * 5 + [0]).tolist() == [1, 2] * 5 + [0]
    endless = tiny()
    with torch.no_grad():
        endless.gap_head.out.bias[CLASSES], endless.gap_head.out.bias[-1] = 99.0, -99.0
    assert endless.restore([1, 2]).tolist() == [1, 2]


@pytest.mark.parametrize("sent, expect", [([1] * 12, "12 tokens were sent: expected at most 11; restore them in parts")])
def test_more_than_it_reads_is_refused_in_one_line(sent, expect):
    with pytest.raises(InputError, match=expect) as refused:
        tiny().restore(sent)
    assert "\n" not in str(refused.value)


def test_who_cannot_find_gaps_says_so_in_one_line(toy):
    with pytest.raises(InputError, match="the reconstructor: expected one that finds gaps, found no gap head") as refused:
        Reconstructor.from_base(toy / "base").restore([2, 3])
    assert "\n" not in str(refused.value)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
