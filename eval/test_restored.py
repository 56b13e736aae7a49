"""Tests of what a reader of plain text gets: `python eval/test_restored.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from eval.restored import COLUMNS, KINDS, kinds, restored_figures, restored_row, surviving
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE_MODEL)


SENTENCES = [  # words; of these numbers, names, negations
    ("In 1875 we had 3,000 men and B-52s .", "1875 3,000 B-52s", "B-52s", ""),
    ("Paris fell. London did too: Rome stood , said Cato", "", "Cato", ""),
    ("I think that I\u2019m here , I'll stay with (Bob) and “Eve”", "", "(Bob) “Eve”", ""),
    ("we don't can\u2019t cannot not nor without NOBODY", "", "NOBODY", "don't can\u2019t cannot not nor without NOBODY"),
    ("a note on knots , another nothingness and isn\u2019tit", "", "", ""),
    ("she met Élodie O'Neil", "", "Élodie O'Neil", ""),
]


@pytest.mark.parametrize("text, numbers, names, negations", SENTENCES)
def test_numbers_names_and_negations_are_told_apart(text, numbers, names, negations):
    """A name is capitalised elsewhere than where a sentence begins; "n't" counts with either apostrophe."""
    words = text.split()
    for kind, expected in zip(kinds([f" {word}" for word in words]), (numbers, names, negations), strict=True):
        assert [word for word, is_it in zip(words, kind, strict=True) if is_it] == expected.split()


def test_a_word_survives_if_all_of_its_tokens_are_sent(tokenizer):
    """Whatever one decision is about: words are counted as words."""
    text = "Do not tell Monongahela's 1,903 citizens that Ohio didn't pay 1875 dollars."
    ids = np.array(tokenizer(text)["input_ids"])
    everything = np.ones(len(ids), dtype=bool)
    assert [x.tolist() for x in surviving(tokenizer, ids, everything)] == [[2, 2, 2], [2, 2, 2]]
    assert [x.tolist() for x in surviving(tokenizer, ids, ~everything)] == [[2, 2, 2], [0, 0, 0]]
    pieces = [tokenizer.decode([token]) for token in ids]
    lost = {}
    for i, piece in enumerate(pieces):
        keep_mask = everything.copy()
        keep_mask[i] = False
        lost[i] = (2 - surviving(tokenizer, ids, keep_mask)[1]).tolist()
    assert lost[pieces.index(" not")] == [0, 0, 1] and lost[pieces.index(" Ohio")] == [0, 1, 0]
    assert sum(lost[i] == [0, 1, 0] for i in lost) > 2, "each part of a name of several tokens counts"
    assert sum(lost[i] == [1, 0, 0] for i in lost) > 2 and lost[pieces.index(" tell")] == [0, 0, 0]


def test_what_is_sent_whole_comes_back_whole_and_mistakes_count(opened):
    models, corpus = opened
    reconstructor, text, everything = models.reconstructor, corpus.texts[0], np.ones(len(corpus.texts[0]), dtype=bool)
    whole = dict(zip(COLUMNS, restored_row(reconstructor, text, everything), strict=True))
    assert whole["errors"] == 0 and whole["chrf"] == pytest.approx(1) and whole["words"] == len(text) and whole["texts"] == 1
    first = everything.copy()
    first[0] = False  # a word, of which only its class is known
    row = dict(zip(COLUMNS, restored_row(reconstructor, text, first), strict=True))
    restored = reconstructor.restore(text[first]).tolist()
    assert len(restored) == len(text) and row["errors"] == (restored[0] != text[0]) and row["words"] == len(text)
    other = next(word for word in range(2, 22) if word != restored[0] and word % 4 == restored[0] % 4)
    row = dict(zip(COLUMNS, restored_row(reconstructor, np.array([other, *text[1:]]), first), strict=True))
    assert row["errors"] == 1 and row["chrf"] < 1, "the wrong word came back"
    nothing = dict(zip(COLUMNS, restored_row(reconstructor, text, ~everything), strict=True))
    assert nothing["errors"] >= len(text) / 2 and nothing["chrf"] < 0.5 and nothing["words"] == len(text)


def test_texts_of_no_word_or_one_have_a_row():
    base = Reconstructor.load(BASE_MODEL, gaps="found")
    word, blank = (np.array(base.tokenizer(text)["input_ids"]) for text in (" the", " "))
    for text, expected in ((word, [1, 1]), (blank, [1, 0]), (word[:0], [1, 0])):
        row = restored_row(base, text, np.full(len(text), True))
        assert row[:2].tolist() == expected and not row[4:].any() and np.isfinite(row).all()
    assert restored_row(base, word, np.array([False]))[:3].tolist() == [1, 1, 1], "nothing was sent and another text came back"


def test_figures_are_closed_forms():
    one = [1, 10, 2, 0.9, 4, 3, 2, 1, 3, 0]  # texts, words, errors, chrF; numbers, names, negations; of these sent
    two = [1, 30, 6, 0.5, 0, 1, 2, 0, 0, 1]
    found = restored_figures(np.array([np.add(one, two), one, two]))
    expected = {"word_error_rate": [0.2, 0.2, 0.2], "chrf": [0.7, 0.9, 0.5], "numbers_sent": [0.25, 0.25, 1.0]}
    expected |= {"names_sent": [0.75, 1.0, 0.0], "negations_sent": [0.25, 0.0, 0.5]}
    assert list(found) == list(expected) and list(found)[2:] == [f"{kind}_sent" for kind in KINDS]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
