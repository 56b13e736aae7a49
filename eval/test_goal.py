"""Compressing for a language model that reads what is sent: `python eval/test_goal.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data.artifacts import InputError
from data.sources import SotuDocuments
from eval import deciding
from eval.compress import Compressor, Protection
from eval.deciding import select_chain
from models.agent.files import RELEASED, TrainedAgent, load_policy

PATHS = "The settings are in /srv/data/run-07/config.yaml, and the run that made them is not the one that the others asked for."


@pytest.fixture(scope="module")
def for_readers():
    return Compressor.from_pretrained(goal="read")


def test_a_text_for_a_reader(for_readers):
    """Never more than asked for, other words than to be restored, and what is protected stays."""
    text = next(text for _, text in SotuDocuments(0))[:6000]
    compressors = for_readers, Compressor()
    for ratio in (0.8, 0.5, 0.2):
        found, restored = (each.compress(text, keep_ratio=ratio) for each in compressors)
        assert 0.97 * found.asked <= found.kept_tokens <= found.asked and found.text != restored.text
        assert "".join(text[start:end] for start, end in found.spans) == found.text
    protected = for_readers.compress(PATHS, keep_ratio=0.5, protection=Protection(patterns=(r"/\S+",)))
    assert "/srv/data/run-07/config.yaml" in protected.text
    reasons = for_readers.compress(PATHS, keep_ratio=0.5, explain=True).reasons
    kept, left = ([each.cost for each in reasons if each.kept == kept and not each.protected] for kept in (True, False))
    assert 0 < min(kept + left) and max(kept + left) < 100 and np.mean(kept) > np.mean(left)


def test_windows_of_a_long_text_for_a_reader_leave_no_seam(for_readers, monkeypatch):
    """Worths of a text in windows are nearly those of one window, pairs across the cuts included."""
    text = next(text for _, text in SotuDocuments(0))[:3500]
    job = for_readers._open(text, (0.5, None, None), Protection())
    parts = deciding.worths(for_readers._policy, [job.task], 4)[0]
    monkeypatch.setattr(deciding, "WINDOW", 1000)
    whole = deciding.worths(for_readers._policy, [job.task], 4)[0]
    assert len(job.encoded.ids) > 512 and all((part > 0).all() for part in parts)
    assert all(np.corrcoef(np.log(a), np.log(b))[0, 1] > 0.9 for a, b in zip(parts, whole, strict=True))


def test_chains_keep_what_is_protected():
    rng = np.random.default_rng(0)
    for budget in (0, 5, 20, 60):
        words, pairs, size = rng.exponential(size=30), rng.exponential(size=29), rng.integers(1, 4, 30)
        protected = rng.random(30) < 0.1
        kept = select_chain(words, pairs, size, protected, budget)
        assert kept[protected].all() and size[kept].sum() <= max(budget, size[protected].sum())


def test_asking_for_a_reader_what_there_is_not(for_readers, tmp_path):
    with pytest.raises(InputError, match="ask for keep_ratio or target_tokens"):
        for_readers.compress(PATHS, price=3.0)
    with pytest.raises(InputError, match="expected one of restore, read"):
        Compressor(goal="sing")
    policy = load_policy(RELEASED)
    policy.reader.worth = None
    TrainedAgent(policy).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="rl/train_worth.py"):
        Compressor.from_pretrained(tmp_path, goal="read")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
