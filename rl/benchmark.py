"""Measure what deciding costs beside a language-model pass, and training beside one environment at a time; each in one run.

    python rl/benchmark.py --data_path data/processed/processed_data.json --reconstructor_path models/reconstructor/fine-tuned

Deciding: a policy of the default size, at a λ and at a keep ratio, for which a λ is looked for, over the same texts as one causal pass, with logits at every token, of the embedded
base and of a GPT-2 with 124 M parameters (random weights; they don't change the time). The policy is an untrained one, whose draft hides
every token, the dearest that it can do. Training: token decisions per
second, rollouts and updates, of the same TokenPPO on TokenCompressionVecEnv and on one TokenCompressionEnv under
Stable-Baselines3's DummyVecEnv. In turns, so that a noisy machine is noisy for all. Writes nothing.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import SEED, Parser, bounded, run
from data.sequences import load_sequences, pad_batch
from eval.methods import causal_nats
from models.reconstructor.reconstructor import Reconstructor, find_device, load_causal_lm
from models.reconstructor.tokenizer import BASE_MODEL
from rl import train
from rl.env import PRICES, TokenCompressionEnv, TokenCompressionVecEnv


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory written by models/reconstructor/train_cpu.py or train_gpu.py")
    add("--base_model", default=BASE_MODEL, help="causal LM to compare deciding with, beside a GPT-2 with 124 M parameters")
    add("--max_length", type=bounded(int, 2, 10**6), default=128, help="tokens per text, longer ones are cut into several")
    add("--texts", type=bounded(int, 1, 10**6), default=16, help="texts per turn of deciding")
    add("--n_envs", type=bounded(int, 2, 20_000), default=64, help="texts judged in one reconstructor call; a rollout has as many on either side")
    add("--turns", type=bounded(int, 1, 10**6), default=5, help="turns of each")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds texts and weights")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def report(title, unit, speeds, ours):
    """Print the medians of {name: speeds} and the paired ratios of `ours` to the others."""
    print(title)
    for name, values in speeds.items():
        ratios = np.array(speeds[ours]) / np.array(values)
        beside = "" if name == ours else f"   {ours} is {np.median(ratios):.1f} times as fast (from {ratios.min():.1f} to {ratios.max():.1f})"
        print(f"  {name:38s}{np.median(values):12,.0f} {unit} (from {min(values):,.0f} to {max(values):,.0f}){beside}")


def in_turns(ways, turns, quiet):
    """{name: [tokens per second, …]} of functions that return how many tokens they dealt with; a first turn is not timed."""
    speeds = {name: [] for name in ways}
    for turn in tqdm(range(turns + 1), unit="turn", disable=quiet):
        for name, way in ways.items():
            start = time.perf_counter()
            tokens = way()
            if turn:
                speeds[name].append(tokens / (time.perf_counter() - start))
    return speeds


def trainer(env, args, n_envs, reconstructor, texts, device):
    """A function that trains an agent of the default settings on one more rollout and returns its tokens."""
    settings = train.parse_args(["--n_steps", str(args.n_envs), "--n_envs", str(n_envs), "--seed", str(args.seed)])
    agent = train.build_agent(settings, env, reconstructor, texts, device)

    def one_rollout():
        agent.learn(args.n_envs, reset_num_timesteps=False)
        return int((agent.rollout_buffer.observations["valid"] > 0).sum())

    return agent, one_rollout


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    torch.manual_seed(args.seed)
    reconstructor = Reconstructor.load(args.reconstructor_path, device)
    texts = load_sequences(args.data_path, reconstructor.fingerprint, min(args.max_length, reconstructor.max_length))
    length = min(args.max_length, reconstructor.max_length)
    many, train_many = trainer(TokenCompressionVecEnv(texts, reconstructor, length, args.n_envs), args, args.n_envs, reconstructor, texts, device)
    one = DummyVecEnv([lambda: TokenCompressionEnv(texts, reconstructor, length)])
    _, train_one = trainer(one, args, 1, reconstructor, texts, device)

    chosen = np.random.default_rng(args.seed).permutation(len(texts))[: args.texts]
    ids, valid = pad_batch([texts[int(i)] for i in chosen], 0)
    models = {"causal pass, base model": load_causal_lm(args.base_model), "causal pass, GPT-2 with 124 M": GPT2LMHeadModel(GPT2Config(n_positions=max(1024, length), vocab_size=reconstructor.vocab_size))}

    many.policy.calibrate(ids, valid, *PRICES)

    def decide():
        many.policy.keep_probability(ids, valid, 1.5)
        return int(valid.sum())

    def decide_at_ratio():
        many.policy.keep_probability_at(ids, valid, 0.7)
        return int(valid.sum())

    def causal_pass(model):
        model = model.to(device).eval()

        def run_it():
            causal_nats(model, reconstructor.bos_id, ids, valid)
            return int(valid.sum())

        return run_it

    deciding = in_turns({"agent": decide, "agent at a keep ratio": decide_at_ratio, **{name: causal_pass(model) for name, model in models.items()}}, args.turns, args.quiet)
    training = in_turns({"TokenCompressionVecEnv": train_many, "one environment under DummyVecEnv": train_one}, args.turns, args.quiet)
    report(f"deciding, {args.texts} texts of up to {length} tokens", "tokens/s", deciding, "agent")
    report(f"training, rollouts of {args.n_envs} texts of up to {length} tokens and their updates", "decisions/s", training, "TokenCompressionVecEnv")


if __name__ == "__main__":
    run(main)
