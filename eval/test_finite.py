"""Tests that no NaN or infinity of a model goes into results: `python eval/test_finite.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data.artifacts import InputError
from data.testing.toy import overflow
from eval import evaluate, evaluate_price
from eval.conftest import evaluate_words, opened, stages  # fixtures
from eval.inputs import Scores
from eval.methods import CausalSurprisal, IterativeSurprisal
from eval.reader import Reader
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import load_tokenizer

TOKEN = 5  # of the toy language, a word


@pytest.fixture(scope="module")
def infinite(stages, tmp_path_factory):
    """The toy base, whose weights are finite, and what it says of one word is not."""
    folder = tmp_path_factory.mktemp("infinite")
    overflow(load_causal_lm(stages[0] / "base"), TOKEN).save_pretrained(folder)
    load_tokenizer(stages[0] / "base").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("main", [evaluate.main, evaluate_price.main])
@pytest.mark.parametrize("method, name", [("causal", "causal surprisal"), ("iterative", "iterative surprisal")])
def test_a_base_that_says_nan_is_named_and_nothing_is_written(stages, infinite, tmp_path, main, method, name):
    words = ["--base_model", infinite, "--methods", method, "--num_sequences", 8, "--tune_sequences", 4]
    with pytest.raises(InputError, match=f"{name} by {infinite}: expected finite numbers for every token") as refused:
        main(evaluate_words(stages[0], *words, "--output_dir", tmp_path / "out"))
    assert "\n" not in str(refused.value) and not list((tmp_path / "out").glob("*.json"))


def test_a_receiver_that_says_nan_is_named(stages, tmp_path):
    receiver = Reconstructor.load(stages[0] / "tuned", gaps="found")
    overflow(receiver.model, TOKEN)
    receiver.save(tmp_path / "infinite", args=evaluate.parse_args([]))
    words = ["--methods", "random", "--num_sequences", 8, "--receivers", f"random={tmp_path}/infinite"]
    with pytest.raises(InputError, match=f"the reconstructor {tmp_path}/infinite: expected finite numbers"):
        evaluate.main(evaluate_words(stages[0], *words, "--output_dir", tmp_path / "out"))


def test_a_reader_that_says_nan_is_named(infinite):
    reader = Reader(load_causal_lm(infinite), load_tokenizer(infinite), 4)
    with pytest.raises(InputError, match=f"--reader {infinite}: expected finite numbers"):
        reader.nats([([0, 3], [TOKEN, 4])], "")


def test_scores_of_any_method_are_finite_where_text_is_and_padding_does_not_count(opened, infinite):
    _, corpus = opened

    class Method:
        name, lm_passes, depends_on_rate, mean = "a method", 0, False, True

        def scores(self, ids, valid, keep_ratio):
            return np.where(valid, 1.0, np.nan) if self.padding else np.where(ids == TOKEN, np.inf, 1.0)

    method = Method()
    for method.padding in (True, False):
        try:
            Scores(method, corpus).masks(0.5)
            assert method.padding
        except InputError as error:
            assert not method.padding and "the scores of a method: expected finite" in str(error)
    ids = np.array([[2, 3, 4, TOKEN]])
    model = load_causal_lm(infinite)
    for surprisal in (CausalSurprisal(model, 0), IterativeSurprisal(model, 0, corpus.words)):
        with pytest.raises(InputError, match="expected finite"):
            surprisal.scores(ids, np.ones(ids.shape, bool), 0.5)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
