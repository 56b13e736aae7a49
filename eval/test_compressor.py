"""Tests of compressing and restoring from Python, with the agent that ships: `python eval/test_compressor.py` or pytest."""

import base64
import pickle
import re
import sys
import threading
import uuid
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher

from data.artifacts import InputError
from data.sources import SotuDocuments
from eval import deciding, restoring
from eval.compress import Compressed, Compressor, Protection
from eval.encoding import PART, windows
from eval.deciding import fit, select

KOREAN = "저는 서울에 사는 학생이고, 오늘은 날씨가 매우 좋아서 공원에서 책을 읽었습니다. 내일은 친구를 만나러 부산에 갑니다. "
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いていた。"
TABLE = "| name | age | city |\n|------|-----|------|\n| Ann Lee | 31 | Oslo |\n| Bo Chan | 42 | Lima |\n"
CODE = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)\n"
WARNING = "Do not restart the server, and never delete the logs."
PATHS = f"The file is /srv/data/run-07/config.yaml, and its key is {uuid.UUID(int=7)}, as I said before, so please open it."
EMOJI = "🇩🇪🇯🇵 flags and 👨‍👩‍👧‍👦 a family with 👩🏽‍🚀 in it, who went to the park in the morning and came home late in the evening. "


@pytest.fixture(scope="module")
def compressor():
    return Compressor.from_pretrained()


@pytest.fixture(scope="module")
def prose():
    """Some 20,000 tokens of prose."""
    return "\n".join(text for _, text in zip(range(4), (text for _, text in SotuDocuments(0))))


def cut(compressor, text, tokens):
    """The beginning of a text, or nearly, that has exactly so many tokens."""
    text = text[: 8 * tokens]
    while compressor.encoder.count(text[: (end := compressor.encoder.encode(text).bounds[tokens])]) != tokens:
        text = text[1:]
    return text[:end]


def check(compressor, text, found, plain=None):
    """What holds for every Compressed: what was sent is the original at spans in order, and tokens are counted on that."""
    assert "".join(text[start:end] for start, end in found.spans) == found.text
    ends = [x for span in found.spans for x in span]
    assert ends == sorted(ends) and all(start < end for start, end in found.spans)
    assert found.tokens == compressor.encoder.count(text if plain is None else plain)
    assert found.kept_tokens == compressor.encoder.count(found.text) <= found.tokens
    assert found.ratio == (found.kept_tokens / found.tokens if found.tokens else 1.0)
    found.text.encode("utf-8")
    return found


WHOLE = {"": "too few", "hello": "too few", "\n": "too few", KOREAN * 3: "another script", JAPANESE * 3: "another script"}
SHORTER = {
    "code": CODE * 6, "table": TABLE * 6, "warning": WARNING, "paths": PATHS, "emoji": EMOJI * 4, "same word": "again " * 5000,
    "crlf": f"{PATHS}\r\n{WARNING}\r\n" * 4, "nul": f"{PATHS}\0{WARNING}\0" * 4,
    "special tokens": f"<|endoftext|>{PATHS}<|mask|> <keep>" * 3,
    "base64": base64.b64encode(np.random.default_rng(0).bytes(2000)).decode(),
}


@pytest.mark.parametrize("text", WHOLE, ids=["empty", "hello", "newline", "korean", "japanese"])
def test_what_is_not_worth_it_passes_through_whole_and_says_so(compressor, text):
    found = check(compressor, text, compressor.compress(text, keep_ratio=0.5))
    assert found.text == text and WHOLE[text] in found.note and "passed through whole" in found.note
    assert "\n" not in found.note
    few = check(compressor, text, compressor.compress(text, target_tokens=3))  # a number of tokens is kept to
    assert few.kept_tokens <= 3


@pytest.mark.parametrize("name", SHORTER)
def test_never_more_than_asked_and_cut_at_characters(compressor, name, keep_ratio=0.4):
    text = SHORTER[name]
    found = check(compressor, text, compressor.compress(text, keep_ratio=keep_ratio, protection=Protection(negations=False)))
    assert found.kept_tokens <= keep_ratio * found.tokens and not found.note
    assert found.kept_tokens >= 0.9 * keep_ratio * found.tokens - 1


@pytest.mark.parametrize("tokens", [50, 511, 513, 1053, 2515])
def test_lengths(compressor, prose, tokens):
    text = cut(compressor, prose, tokens)
    for ask in ({"keep_ratio": 0.6}, {"target_tokens": tokens // 3}):
        found = check(compressor, text, compressor.compress(text, **ask, protection=Protection(negations=False)))
        assert found.tokens == tokens
        assert found.asked - max(2, tokens // 200) <= found.kept_tokens <= found.asked


def test_ten_thousand_tokens_without_a_line_break(compressor, prose):
    text = cut(compressor, prose.replace("\n", " "), 10_000)
    found = check(compressor, text, compressor.compress(text, keep_ratio=0.5, protection=Protection(negations=False)))
    assert 4_950 <= found.kept_tokens <= 5_000
    assert set(re.findall(r"\w+", found.text)) <= set(re.findall(r"\w+", text)), "no word is cut or fused"
    kept = np.zeros(len(text))
    for start, end in found.spans:
        kept[start:end] = 1
    shares = kept[: len(text) // 2000 * 2000].reshape(-1, 2000).mean(1)
    assert shares.max() - shares.min() < 0.25, "kept alike all over the text"


def test_single_tokens(prose):
    by = Compressor.from_pretrained(unit="token", keep_ratio=0.5)
    text = cut(by, prose, 600)
    found = check(by, text, by.compress(text))
    assert 295 <= found.kept_tokens <= 300
    assert not set(re.findall(r"\w+", found.text)) <= set(re.findall(r"\w+", text)), "words are cut"


@pytest.mark.parametrize("size, margin", [(deciding.WINDOW, deciding.MARGIN), (restoring.SENT, restoring.MARGIN)])
def test_windows_tile_a_text_and_nothing_is_decided_at_an_edge(size, margin):
    for length in (1, 255, 256, 257, 384, 385, 511, 513, 1053, 2515, 100_000):
        at = 0
        for start, end, first, last in windows(length, size, margin):
            assert first == at and end - start == min(size, length) and 0 <= start <= first < last <= end <= length
            assert start == 0 or first - start >= margin
            assert end == length or end - last >= margin
            at = last
        assert at == length


def test_what_is_decided_does_not_depend_on_company(compressor, prose):
    texts = [cut(compressor, prose[i:], n) for i, n in zip((0, 3000, 9000), (40, 300, 700))]
    together = compressor.compress_many(texts, keep_ratio=0.6)
    alone = [compressor.compress(text, keep_ratio=0.6) for text in texts]
    assert [each.text for each in together] == [each.text for each in alone]
    assert compressor.compress_many([]) == []


def test_a_price_is_no_budget_and_a_dearer_token_is_left_out_sooner(compressor, prose):
    text = cut(compressor, prose, 600)
    kept = [check(compressor, text, compressor.compress(text, price=price)).kept_tokens for price in (0.5, 2.0, 8.0)]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[2]


def test_protected_spans_stay_character_for_character(compressor):
    protection = Protection(patterns=(r"/[\w/.-]+\w", r"[0-9a-f-]{36}"))
    found = check(compressor, PATHS, compressor.compress(PATHS, keep_ratio=0.75, protection=protection))
    assert "/srv/data/run-07/config.yaml" in found.text and str(uuid.UUID(int=7)) in found.text and not found.note
    few = check(compressor, PATHS, compressor.compress(PATHS, keep_ratio=0.2, protection=protection))
    assert "/srv/data/run-07/config.yaml" in few.text and str(uuid.UUID(int=7)) in few.text
    assert few.note.startswith("what is protected has") and few.kept_tokens > 0.2 * few.tokens
    loose = compressor.compress(PATHS, keep_ratio=0.2)  # the control
    assert str(uuid.UUID(int=7)) not in loose.text and loose.kept_tokens <= 0.2 * loose.tokens


def test_do_not_stays_do_not(compressor):
    found = check(compressor, WARNING, compressor.compress(WARNING, keep_ratio=0.5))
    assert " not" in found.text and " never" in found.text and found.kept_tokens <= found.tokens // 2
    nothing = compressor.compress(WARNING, target_tokens=2, protection=Protection(negations=False))
    assert " not" not in nothing.text or " never" not in nothing.text


def test_markers_stay_out_and_what_is_between_stays_in(compressor):
    text = "The committee met in the spring and <keep>it was of the</keep> opinion that all of the papers should be read again."
    plain = text.replace("<keep>", "").replace("</keep>", "")
    found = check(compressor, text, compressor.compress(text, keep_ratio=0.5), plain)
    assert "it was of the" in found.text and "keep>" not in found.text and found.kept_tokens <= found.tokens / 2
    assert "it was of the" not in compressor.compress(plain, keep_ratio=0.5).text
    short = check(compressor, "<keep>Hi</keep> you", compressor.compress("<keep>Hi</keep> you"), "Hi you")
    assert short.text == "Hi you"


def test_half_a_surrogate_pair_is_refused_in_one_line(compressor):
    with pytest.raises(InputError, match="half of a surrogate pair") as refused:
        compressor.compress("It was \ud83d and nothing else that anybody saw on that day.")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "ask", [{"keep_ratio": 0}, {"keep_ratio": 1.1}, {"keep_ratio": float("nan")}, {"target_tokens": -1}, {"price": 0.0},
            {"keep_ratio": 0.5, "price": 2.0}],
)
def test_what_cannot_be_asked_for(compressor, ask):
    with pytest.raises(InputError, match="expected"):
        compressor.compress(WARNING, **ask)


def test_long_texts_encode_in_parts_as_they_do_whole(compressor, prose):
    megabyte = base64.b64encode(np.random.default_rng(0).bytes(750_000)).decode()
    for text in (prose, megabyte, "a" * 2 * PART, f"{KOREAN}{EMOJI}\r\n\0 x" * 500):
        encoded = compressor.encoder.encode(text)
        assert encoded.ids.tolist() == compressor.encoder.backend.encode(text, add_special_tokens=False).ids
        assert compressor.encoder.count(text) == len(encoded.ids)
        assert encoded.bounds[0] == 0 and encoded.bounds[-1] == len(text) and (np.diff(encoded.bounds) >= 0).all()
        assert (np.diff(encoded.bounds[:-1][encoded.starts]) > 0).all(), "every unit has a character"


def test_fit_never_goes_above_the_budget_even_where_a_text_encodes_to_more():
    rng = np.random.default_rng(0)
    for budget in range(0, 60, 7):
        scores, size = rng.normal(size=30), rng.integers(1, 4, 30)
        protected = rng.random(30) < 0.1
        for factor in (1.0, 1.2, 0.8):
            count = lambda kept: int(np.ceil(factor * size[kept].sum()))
            kept, found = fit(partial(select, scores, size, protected), size, protected, budget, count)
            assert found == count(kept) and kept[protected].all()
            assert found <= budget or (kept == protected).all()
    kept = select(np.array([3.0, 2, 1]), np.array([2, 3, 1]), np.zeros(3, bool), 3)
    assert kept.tolist() == [True, False, True], "a smaller one is tried"


def test_reasons_are_the_critics_estimates(compressor):
    found = compressor.compress(PATHS, keep_ratio=0.6, explain=True)
    assert "".join(reason.text for reason in found.reasons) == PATHS
    assert "".join(reason.text for reason in found.reasons if reason.kept) == found.text
    assert all(reason.cost > 0 and reason.keeping > 0 and reason.price > 0 for reason in found.reasons)
    kept, dropped = ([r.cost for r in found.reasons if r.kept is which] for which in (True, False))
    assert np.mean(kept) > np.mean(dropped)
    assert compressor.compress(PATHS).reasons == ()


def test_threads_share_one(compressor, prose):
    texts, found = [cut(compressor, prose[i * 2500 :], 150) for i in range(4)], {}

    def work(number):
        found[number] = [compressor.compress(text, keep_ratio=0.6).text for text in texts] + [compressor.restore(texts[0])]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == [compressor.compress(t, keep_ratio=0.6).text for t in texts] + [compressor.restore(texts[0])]


def test_batches_of_columns_and_pickles(compressor):
    batch = {"text": [PATHS, WARNING], "id": [1, 2]}
    found = compressor(batch)
    assert found["id"] == [1, 2] and found["compressed"] == [compressor.compress(text).text for text in batch["text"]]
    arrays = compressor({name: np.array(values, dtype=object) for name, values in batch.items()})
    assert arrays["compressed"].tolist() == found["compressed"] and arrays["kept_tokens"].tolist() == found["kept_tokens"]
    settings = {"keep_ratio": 0.5, "protection": Protection(numbers=True)}
    again = pickle.loads(pickle.dumps(Compressor(**settings)))
    assert again.settings == Compressor(**settings).settings and len(pickle.dumps(again)) < 2000
    assert again(batch)["compressed"] == [compressor.compress(text, **settings).text for text in batch["text"]]
    for wrong in ({"body": ["x"]}, {"text": ["x", None]}):
        with pytest.raises(InputError, match="expected"):
            compressor(wrong)


def test_a_dataset_maps_through_it_as_it_is(compressor, tmp_path):
    rows = datasets.Dataset.from_dict({"text": [PATHS, WARNING, "hello"], "id": [3, 2, 1]})
    found = rows.map(compressor, batched=True, batch_size=2, cache_file_name=str(tmp_path / "cache.arrow"))
    assert found["id"] == [3, 2, 1] and found["compressed"] == [compressor.compress(text).text for text in rows["text"]]
    assert Hasher.hash(Compressor(keep_ratio=0.5)) == Hasher.hash(Compressor(keep_ratio=0.5)) != Hasher.hash(compressor)


def test_two_hundred_texts_get_what_was_asked_for_and_never_more(compressor, prose):
    """Requested against achieved: the mean shortfall is under 1 % of the texts' tokens."""
    texts = [cut(compressor, prose[400 * i :], 40 + i % 40) for i in range(200)]
    found = compressor.compress_many(texts, keep_ratio=0.6)
    short = [0.6 - check(compressor, text, each).ratio for text, each in zip(texts, found, strict=True) if not each.note]
    short = np.array(short)
    assert len(short) > 195 and short.min() >= 0 and short.mean() < 0.01


def test_what_was_sent_comes_back_in_what_is_restored(compressor, prose):
    for text in (*SHORTER.values(), KOREAN, "", "x", cut(compressor, prose, 2515)):
        text = text[:4000]
        restored, at = compressor.restore(text), 0
        for character in text:
            at = restored.index(character, at) + 1
        assert "\ufffd" not in restored
    sent = compressor.compress(cut(compressor, prose, 400), keep_ratio=0.7)
    assert isinstance(sent, Compressed) and compressor.restore(sent) == compressor.restore(sent.text)
    assert compressor.encoder.count(compressor.restore(sent)) > sent.kept_tokens


def test_long_restorations_have_no_seam(compressor, prose):
    """A long text restored in windows is, but for a few places, what its parts are."""
    sent = compressor.compress(cut(compressor, prose, 2000), keep_ratio=0.7).text
    words = compressor.restore(sent).split()
    assert 1.2 < len(words) / len(sent.split()) < 2.0


def test_keep_mask_of_tokens(compressor):
    ids = compressor.encoder.encode(PATHS).ids
    mask = compressor.keep_mask(ids.tolist())
    assert mask.dtype == bool and mask.shape == ids.shape and 0.6 * len(ids) < mask.sum() <= 0.7 * len(ids)
    assert np.array_equal(mask, compressor.keep_mask(torch.tensor(ids))) and not len(compressor.keep_mask([]))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
