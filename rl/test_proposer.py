"""The proposer learned by supervision: it learns, its control does not, its file: `python rl/test_proposer.py` or pytest."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from data.sequences import pad_batch
from models.agent.actor_critic import FIRST_COST
from models.agent.files import TrainedAgent, load_policy
from models.reconstructor.texts import token_counts
from rl import train_proposer
from rl.conftest import alike, train_agent


def proposer_words(toy, output, *words):
    paths = f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --output_dir {output}"
    return [*f"{paths} --gaps told --unit token --device cpu --quiet".split(), *map(str, words)]


@pytest.fixture(scope="module")
def proposer(toy, tmp_path_factory):
    """The folder that the script writes, after hardly any training."""
    folder = tmp_path_factory.mktemp("proposer")
    train_proposer.main(proposer_words(toy, folder, "--num_texts", 64, "--eval_sequences", 16, "--epochs", 3, "--seed", 5))
    return folder


def test_verified_masks_are_learned_and_shuffled_ones_are_not(toy, reconstructor, texts):
    """Which tokens are worth their price can be known, here of echoes and words: better than from the share that is kept."""
    args = train_proposer.parse_args(proposer_words(toy, "nowhere", "--epochs", 8))
    counts, rng, left = token_counts(texts, reconstructor.vocab_size), np.random.default_rng(0), {}
    policy = train_proposer.build_proposer(args, reconstructor, counts)
    some, others = (train_proposer.verified_examples(texts, policy.prices, count, count, policy.reader) for count in (192, 48))
    for shuffled in (False, True):
        policy = train_proposer.build_proposer(args, reconstructor, counts)
        learned, held_out = (
            [e._replace(kept=rng.permutation(e.kept)) if shuffled else e for e in examples] for examples in (some, others)
        )
        before = train_proposer.mean_cross_entropy(policy, held_out)
        history = list(train_proposer.train(policy, learned, held_out, args))
        assert len(history) == 8 and history[-1] < before
        left[shuffled] = history[-1] / train_proposer.base_rate(held_out)
    assert left[False] < 0.5 and left[True] > 0.97, left


def test_a_verified_mask_depends_on_its_price(toy, reconstructor, texts):
    """The dearer a token, the fewer are kept; and text, price and mask are drawn by the seed alone."""
    args = train_proposer.parse_args(proposer_words(toy, "nowhere"))
    policy = train_proposer.build_proposer(args, reconstructor, token_counts(texts, reconstructor.vocab_size))
    first, again = (train_proposer.verified_examples(texts, (0.2, 10.0), 24, 3, policy.reader) for _ in range(2))
    assert [e.price for e in first] == [e.price for e in again] and all(0.2 <= e.price <= 10 for e in first)
    assert all((a.kept == b.kept).all() and (a.text == b.text).all() for a, b in zip(first, again, strict=True))
    cheap, dear = (np.mean([e.kept.mean() for e in first if (e.price > 1.6) == above]) for above in (False, True))
    assert cheap > dear + 0.2


def test_its_file_is_an_agents_that_decides_in_the_first_pass(proposer, texts, tmp_path):
    record, policy = json.loads((proposer / "training.json").read_text()), load_policy(proposer / "best_model.zip")
    assert record["schema"] == train_proposer.SCHEMA and len(record["bce"]) == 3 and 0 < record["keep_ratio"] < 1
    J, row = record["J_by_threshold"], policy.config["held_out"]
    assert (row["epoch"], row["bce"]) == (int(np.argmin(record["bce"])) + 1, min(record["bce"]))
    assert J[str(row["threshold"])] == row["J"] == max(J.values()) and len(set(J.values())) > 1
    assert policy.config["supervised"] and policy.supervised and policy.lm_passes == 0.5 and policy.config["seed"] == 5
    ids, valid = (torch.as_tensor(x) for x in pad_batch([texts[0], texts[1][:9]], 0))
    price = torch.tensor([[0.5], [3.0]])
    states, draft = policy.read(ids, valid, price)
    logits, cost, _ = policy.decide(ids, valid, price, states)
    assert draft is None and torch.equal(policy.keep_probability(ids, valid, price[:, 0]), logits.sigmoid())
    assert torch.allclose(cost, torch.tensor(FIRST_COST), atol=0.1), "what nothing is learned for stays as it was"
    assert not policy.network.draft.weight.any() and not policy.network.evidence.weight.any()
    at = policy.price_at(ids, valid, 0.5)
    assert torch.equal(policy.keep_probability_at(ids, valid, 0.5), policy.keep_probability(ids, valid, at))
    TrainedAgent(policy).save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    assert again.supervised and alike(again.own_state(), policy.own_state())


def test_an_agent_can_begin_with_it(toy, proposer, tmp_path):
    """And is an agent then, which reads drafts. For a network of another width it is refused in one line."""
    train_agent(toy, tmp_path, "--init_from", proposer / "best_model.zip", "--width", 96, "--num_timesteps", 64)
    policy = load_policy(tmp_path / "final_model.zip")
    assert not policy.supervised and policy.lm_passes == 1.5 and policy.network.draft.weight.any()
    with pytest.raises(InputError, match="expected the weights of a network with .* width 16"):
        train_agent(toy, tmp_path, "--init_from", proposer / "best_model.zip", "--num_timesteps", 64)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
