"""Tests of whole words and of what is sent staying text: `python models/reconstructor/test_words.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from data.artifacts import InputError
from data.sources import SotuDocuments
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer
from models.reconstructor.words import LONGEST, Words, spread

HOSTILE = [
    "  leading\r\nnaïve café 🙂 ﷽ \u2028 don't \t\ttabs   x " * 3,
    "def f(x):\n    return x[0]\n\n\n\n    # comment -- 1,000.50 'a'\n" * 4,
    "日本語のテキストです。漢字かな交じり文。" * 4,
    "https://example.org/a/b?c=d, 3.14 $5.00 U.S.A. (the U.K.'s) well-known... \"Quote,\" she said -- and--then! " * 2,
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE_MODEL)


def encode(tokenizer, text):
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def words_of(tokenizer, text, unit="word"):
    """The words of a text, as texts."""
    ids = encode(tokenizer, text)
    starts = Words(tokenizer, unit).starts(ids[None], torch.ones(1, len(ids), dtype=torch.bool))[0]
    assert starts[0]
    first = [*starts.nonzero()[:, 0].tolist(), len(ids)]
    return [tokenizer.decode(ids[a:b]) for a, b in zip(first, first[1:])]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The quick brown fox", ["The", " quick", " brown", " fox"]),
        ("It affords comforts.", ["It", " affords", " comforts", "."]),
        ("costs $1,000 or 3.5% more", ["costs", " $1,000", " or", " 3.5", "%", " more"]),
        ("a well-known man, don't!", ["a", " well-known", " man", ",", " don't", "!"]),
        ('He said "no," twice...', ["He", " said", ' "no', ',"', " twice", "..."]),
        ("(see below) -- then", ["(see", " below", ")", " --", " then"]),
        ("...so what?", ["...so", " what", "?"]),
        ("end.\n\nNew line\tand  more", ["end", ".", "\n\nNew", " line", "\tand", "  more"]),
        ("trailing \n ", ["trailing", " \n "]),
        ("naïve café 🙂", ["naïve", " café", " 🙂"]),
        ("U.S.A.", ["U.S.A", "."]),
        ("antidisestablishmentarianism", ["antidisestablishmentarianism"]),
        ("x", ["x"]),
        ("!", ["!"]),
    ],
)
def test_words_are_what_a_reader_would_say(tokenizer, text, expected):
    assert words_of(tokenizer, text) == expected
    tokens = words_of(tokenizer, text, "token")  # the control
    assert len(tokens) == len(encode(tokenizer, text)) and "".join(expected) == text


def test_text_without_spaces_is_cut(tokenizer):
    ids = encode(tokenizer, "word" + "/abc7" * 30 + " next")
    starts = Words(tokenizer).starts(ids[None], torch.ones(1, len(ids), dtype=torch.bool))[0].nonzero()[:, 0].tolist()
    inside = len(ids) - 1
    assert inside > 3 * LONGEST and starts == [*range(0, inside, LONGEST), inside]


def test_padding_and_company_change_no_word(tokenizer):
    texts = [encode(tokenizer, text) for text in ("It affords comforts, and", "Don't", "1,000 well-known 🙂🙂🙂...")]
    longest = max(map(len, texts)) + 3
    valid = torch.arange(longest) < torch.tensor([len(x) for x in texts])[:, None]
    for filling in ("ford", " the", ",", "\n"):
        ids = torch.full((3, longest), encode(tokenizer, filling)[0])
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
        starts = Words(tokenizer).starts(ids, valid)
        assert starts[~valid].all(), "a token of padding is a word"
        for row, text in enumerate(texts):
            alone = Words(tokenizer).starts(text[None], torch.ones(1, len(text), dtype=torch.bool))[0]
            assert torch.equal(starts[row, : len(text)], alone)


def test_tokens_of_other_tokenizers(tokenizer):
    """Where no token has its space: tokens are words, but for WordPiece's continuations; SentencePiece marks the first."""

    def starts_of(names):
        made = Tokenizer(tokenizer_models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
        made = PreTrainedTokenizerFast(tokenizer_object=made, unk_token=names[0])
        ids = torch.arange(len(names))[None]
        return Words(made).starts(ids, ids >= 0)[0].tolist()

    assert starts_of(["?", "a", "b", "A"]) == [True] * 4
    assert starts_of(["un", "##afford", "##able", "home", ".", "##s"]) == [True, False, False, True, True, False]
    assert starts_of(["▁un", "afford", "able", "▁home", ".", "▁a"]) == [True, False, False, True, True, True]


def test_an_unknown_unit_is_refused(tokenizer):
    with pytest.raises(InputError, match="unit: expected one of word, token, found 'sentence'"):
        Words(tokenizer, "sentence")


def test_every_token_of_a_word_has_its_mean_or_sum():
    x = torch.tensor([[1.0, 2, 3, 10, 20, 5]])
    starts = torch.tensor([[True, False, False, True, False, True]])
    assert spread(x, starts).tolist() == [[2, 2, 2, 15, 15, 5]]
    assert spread(x, starts, mean=False).tolist() == [[6, 6, 6, 30, 30, 5]]
    assert torch.equal(spread(x, torch.ones_like(starts)), x)


def reads_as_sent(tokenizer, ids):
    return tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids.tolist()


def random_words(words, ids, share, generator):
    """A keep mask that keeps this share of the words."""
    number = words.starts(ids[None], torch.ones(1, len(ids), dtype=torch.bool))[0].cumsum(0) - 1
    return (torch.rand(int(number[-1]) + 1, generator=generator) < share)[number]


@pytest.mark.parametrize("unit", ["word", "token"])
def test_what_is_sent_reads_as_it_was_sent(tokenizer, unit):
    words, generator, before, added, count = Words(tokenizer, unit), torch.Generator().manual_seed(0), 0, [], 0
    speeches = [text for _, (_, text) in zip(range(3), SotuDocuments(seed=42))]
    for text in [*speeches, *HOSTILE]:
        ids = encode(tokenizer, text)[:120]
        whole = reads_as_sent(tokenizer, ids)
        for share in (0.9, 0.6, 0.3) * 3:
            keep_mask = random_words(words, ids, share, generator)
            found = words.keeps_reading(ids, keep_mask)
            assert (found | ~keep_mask).all(), "nothing that was kept is left out"
            assert reads_as_sent(tokenizer, ids[found]) or not whole, (tokenizer.decode(ids[found]),)
            same = reads_as_sent(tokenizer, ids[keep_mask])
            assert not same or torch.equal(found, keep_mask), "nothing is added where nothing has to be"
            before, count = before + same, count + 1
            added.append(int(found.sum() - keep_mask.sum()))
            if unit == "word":
                starts = words.starts(ids[None], ids[None] >= 0)[0].cumsum(0)
                assert torch.equal(found, torch.isin(starts, starts[found])), "whole words are added"
    assert 0 < before < count, "the control: some would have read otherwise, some not"
    assert max(added) > 0 and sum(added) / count < (1.5 if unit == "word" else 10)


def test_who_keeps_all_or_nothing_is_left_alone(tokenizer):
    words = Words(tokenizer)
    for text in ("It affords comforts.", "x", HOSTILE[0]):
        ids = encode(tokenizer, text)
        for keep_mask in (torch.ones(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.bool)):
            assert torch.equal(words.keeps_reading(ids, keep_mask), keep_mask)


def test_a_text_that_never_reads_as_it_was_is_not_sent_whole(tokenizer):
    """One that was cut inside a character: no word helps, and none is added for it; elsewhere it reads on."""
    half = encode(tokenizer, "🙂 ")[1:2]
    ids = torch.cat([half, encode(tokenizer, " the two men, who came. They went on and on, and on.")])
    assert not reads_as_sent(tokenizer, ids)
    keep_mask = torch.tensor([True, *[False] * (len(ids) - 2), True])
    assert torch.equal(Words(tokenizer).keeps_reading(ids, keep_mask), keep_mask)
    comma = [i for i, token in enumerate(ids.tolist()) if tokenizer.decode([token]) == ","][0]
    keep_mask[[2, comma]] = True  # the comma would fuse with the stop at the end
    found = Words(tokenizer).keeps_reading(ids, keep_mask)
    assert found.sum() == keep_mask.sum() + 1 and found[comma + 1]


@pytest.mark.parametrize("unit", ["word", "token"])
def test_texts_of_no_token_and_of_one_are_words_too(tokenizer, unit):
    words, one = Words(tokenizer, unit), torch.tensor([5])
    for ids, kept in ((one[:0], []), (one, [True]), (one, [False])):
        keep_mask = torch.tensor(kept, dtype=torch.bool)
        assert words.starts(ids[None], torch.ones(1, len(ids)) > 0).tolist() == [[True] * len(ids)]
        assert torch.equal(words.keeps_reading(ids, keep_mask), keep_mask)
        batch = ids[None].double().numpy(), ids[None].numpy(), torch.ones(1, len(ids), dtype=torch.bool).numpy()
        assert [words.keep_highest(*batch, ratio).tolist() for ratio in (0.4, 0.6)] == [[[False] * len(ids)], [[True] * len(ids)]]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
