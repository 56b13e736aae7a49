"""Train the agent with PPO: which tokens of a text need not be sent?

    python rl/train.py --data_path data/processed/processed_data.json --output_dir models/agent/output \\
        --reconstructor_path models/reconstructor/fine-tuned --num_timesteps 1000000 --n_steps 2048 --batch_size 64 --gamma 0.99

Reads training and validation sequences, a fine-tuned reconstructor and, if `--init_from` names one, an agent to begin with; writes `best_model.zip` (highest J on
held-out texts), `final_model.zip`, `checkpoints/`, `tb_logs/` and `training.json`. A timestep is one text. A run that was
cut off goes on with `--resume`, on a CPU to the same weights as if it had not been.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from stable_baselines3.common.logger import HParam, Logger

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, run, write_json
from data.sequences import pad_batch
from models.agent.policy import DRAFT_THRESHOLD, EnhancedTokenCompressionPolicy, TokenCompressionPolicy
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.training import open_splits
from rl.callbacks import HeldOutEvaluation, RolloutFigures
from rl.checkpoints import Checkpoints, ContinuedLog, load_newest
from rl.env import PRICES, TokenCompressionVecEnv
from rl.ppo import AGENTS, CRITIC_LOSSES, FallingRate, load_policy, save_agent

SCHEMA = "rltc.agent/1"
UNITS = {"J": "nats per original token", "distortion": "nats per original token", "nats": "nats per masked token", "top1": "share of masked tokens", "keep_ratio": "share of tokens", "seconds": "seconds of wall time; of an evaluation: of training before it, without evaluations", "texts": "texts (timesteps)", "parameters": "trained ones; frozen embeddings and the reader of drafts not counted"}
CREDIT_WINDOW = 2  # tokens; the best that was measured
PASSES = 2  # a draft and a decision
PRETRAINED_LAYERS = 3  # blocks, half of the embedded base's
MAX_EVAL_ENVS = 64  # texts judged at one time in a held-out evaluation
COUNTED_TEXTS = 20_000  # texts that token frequencies are counted on, enough for a feature


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences; val_data.json is expected beside them")
    add("--output_dir", type=Path, default=Path("models/agent/output"), help="directory for models, checkpoints, logs and training.json")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory written by models/reconstructor/train_cpu.py or train_gpu.py")
    add("--num_timesteps", type=bounded(int, 1, 10**12), default=20_000, help="texts to decide in training; each is one episode of one step")
    add("--n_steps", type=bounded(int, 2, 10**9), default=64, help="texts per rollout, over all environments together")
    add("--batch_size", type=bounded(int, 2, 10**9), default=16, help="texts per minibatch of the update")
    add("--n_epochs", type=bounded(int, 1, 1000), default=4, help="passes over a rollout")
    add("--n_envs", type=bounded(int, 1, 10**6), default=64, help="texts judged in one reconstructor call; a divisor of --n_steps")
    add("--gamma", type=bounded(float, 0, 1), default=0.99, help="discount factor; changes nothing, because episodes have one step")
    add("--learning_rate", type=bounded(float, 0, 1, open_ends=True), default=1e-3, help="Adam's learning rate at the start")
    add("--final_learning_rate", type=bounded(float, 0, 1), default=1e-4, help="learning rate at the end, reached linearly")
    add("--clip_range", type=bounded(float, 0, 10, open_ends=True), default=0.2, help="PPO's clipping of the probability ratio, per token")
    add("--price_exponent", type=bounded(float, 0, 2), default=0.5, help="advantages are divided by this power of λ, so that texts at a low λ count for more; not with --credit text")
    add("--critic_loss", choices=CRITIC_LOSSES, default=CRITIC_LOSSES[0], help="how the critic is fitted to the nats of masked tokens; not with --credit text, which has squared errors")
    add("--credit_window", type=bounded(int, 0, 10**6), default=None, help=f"tokens on either side whose unexpected cost also counts for or against a decision; 0: its own token alone; default: {CREDIT_WINDOW}, or 0 with another way to give credit")
    add("--credit", choices=("token", "text"), default="token", help="text: Stable-Baselines3's own PPO, all decisions of a text share one advantage")
    add("--init_from", type=Path, default=None, help="agent whose policy training begins with, for example after the reconstructor was adapted to it; with several passes, drafts and token embeddings are today's reconstructor's; the optimiser begins anew")
    add("--ent_coef", type=bounded(float, 0, 10), default=0.0, help="weight of the entropy bonus, per token (with --credit text: of the sum over a text)")
    add("--vf_coef", type=bounded(float, 0, 10), default=0.5, help="weight of the critic's loss")
    add("--max_grad_norm", type=bounded(float, 0, 10**6, open_ends=True), default=0.5, help="gradients are clipped to this norm")
    add("--target_kl", type=bounded(float, 0, 10, open_ends=True), default=None, help="end an update early beyond 1.5 times this KL divergence in nats, per token (with --credit text: per text)")
    add("--min_price", type=bounded(float, 0, 100, open_ends=True), default=PRICES[0], help="lowest λ, nats per token saved; λ is drawn log-uniformly per text")
    add("--max_price", type=bounded(float, 0, 100, open_ends=True), default=PRICES[1], help="highest λ, nats per token saved")
    add("--max_length", type=bounded(int, 1, 10**6), default=None, help="tokens per text, longer ones are cut into several; default: the data's, or the reconstructor's longest")
    add("--width", type=bounded(int, 4, 4096), default=96, help="width of the policy network, a multiple of --heads")
    add("--layers", type=bounded(int, 0, 64), default=2, help="transformer layers of the policy network")
    add("--heads", type=bounded(int, 1, 64), default=4, help="attention heads of the policy network")
    add("--passes", type=bounded(int, 1, 64), default=None, help=f"times that the policy decides; with pretrained layers it reads the text in between as the receiver would, and decides again; default: {PASSES}, or 1 with --credit text, which can't train drafts")
    add("--draft_threshold", type=bounded(float, 0, 1, open_ends=True), default=DRAFT_THRESHOLD, help="between two passes, tokens are hidden that are kept with at most this probability; above one half these are more than will be masked, and it is known what each would cost; nothing without pretrained layers")
    add("--without", nargs="+", choices=EnhancedTokenCompressionPolicy.PARTS, default=[], help="parts of the policy network to leave out, to see what they are worth")
    add("--embedding_dim", type=bounded(int, 1, 4096), default=32, help="token features, started from a truncated SVD of the reconstructor's embedding")
    add("--pretrained_layers", type=bounded(int, 0, 64), default=None, help=f"first blocks of the reconstructor that become the first of the policy, which so can read before it is trained; 0: none; default: {PRETRAINED_LAYERS}, or half of its blocks if it has less than {2 * PRETRAINED_LAYERS}")
    add("--pretrained_rate", type=bounded(float, 0, 1), default=0.3, help="learning rate of those blocks, as a share of --learning_rate; 0: they stay as they are")
    add("--eval_freq", type=bounded(int, 1, 10**12), default=1280, help="training texts between held-out evaluations")
    add("--eval_sequences", type=bounded(int, 1, 10**6), default=48, help="held-out texts, each judged at every one of --eval_prices")
    add("--eval_prices", type=bounded(float, 0, 100, open_ends=True), nargs="+", default=[0.75, 1.5, 3.0], help="values of λ of the held-out evaluation; best_model.zip has the highest mean J over them")
    add("--patience", type=bounded(int, 0, 10**9), default=0, help="stop after this many held-out evaluations without a higher J; 0: never")
    add("--checkpoint_freq", type=bounded(int, 1, 10**12), default=5120, help="training texts between checkpoints")
    add("--save_total_limit", type=bounded(int, 1, 10**6), default=3, help="newest checkpoints to keep")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --output_dir; a larger --num_timesteps trains on")
    add("--device", default="auto", help="auto, cpu, cuda or mps: where policy and reconstructor run; auto takes CUDA if there is one")
    add("--seed", type=SEED, default=42, help="seeds initial weights, order of texts, prices and decisions")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.num_timesteps < args.n_steps:
        parser.error(f"--num_timesteps {args.num_timesteps}: expected at least one rollout, --n_steps {args.n_steps}; give more timesteps or a smaller --n_steps")
    if args.min_price > args.max_price:
        parser.error(f"--min_price {args.min_price}: expected at most --max_price {args.max_price}")
    if args.width % args.heads:
        parser.error(f"--width {args.width}: expected a multiple of --heads {args.heads}")
    args.n_envs = min(args.n_envs, args.n_steps)
    if args.n_steps % args.n_envs:
        parser.error(f"--n_steps {args.n_steps}: expected a multiple of --n_envs {args.n_envs}")
    others = args.credit == "text"
    if args.passes is None:
        args.passes = 1 if args.credit == "text" else PASSES
    if args.credit_window is None:
        args.credit_window = 0 if others else CREDIT_WINDOW
    if (args.credit_window > 0) + others > 1:
        parser.error("expected one way to give credit, found two of --credit_window and --credit text")
    if args.init_from and args.init_from.resolve().is_relative_to(args.output_dir.resolve()):
        parser.error(f"--init_from {args.init_from}: expected an agent outside of --output_dir, where it would be overwritten; choose another --output_dir")
    if args.credit == "text" and args.passes > 1:
        parser.error(f"--passes {args.passes}: expected 1 with --credit text, which can't train drafts")
    return args


def token_counts(sequences, vocab_size):
    """How often each token stands in the first COUNTED_TEXTS texts, (V,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for i in range(min(len(sequences), COUNTED_TEXTS)):
        counts += np.bincount(sequences[i], minlength=vocab_size)
    return counts


def build_agent(args, env, reconstructor, train, device):
    """An agent whose policy starts from the reconstructor's embeddings and the corpus' frequencies, or from `--init_from`."""
    earlier = load_policy(args.init_from, device) if args.init_from else None  # first, because that seeds anew, with its own seed

    per_token = args.credit == "token"
    credit = {"price_exponent": args.price_exponent, "critic_loss": args.critic_loss, "rollout_buffer_kwargs": {"credit_window": args.credit_window}} if per_token else {}
    agent = AGENTS[args.credit](
        TokenCompressionPolicy, env, n_steps=args.n_steps // args.n_envs, batch_size=args.batch_size, n_epochs=args.n_epochs, gamma=args.gamma,
        learning_rate=FallingRate(args.learning_rate, args.final_learning_rate), clip_range=args.clip_range, ent_coef=args.ent_coef, vf_coef=args.vf_coef, max_grad_norm=args.max_grad_norm,
        target_kl=args.target_kl, seed=args.seed, device=device, **credit,
        policy_kwargs={
            "per_token": per_token,
            "features_extractor_kwargs": {
                "embedding_dim": args.embedding_dim, "width": args.width, "layers": args.layers, "heads": args.heads, "without": args.without, "passes": args.passes, "draft_threshold": args.draft_threshold, "pretrained": pretrained_layers(args, reconstructor), "tokenizer_fingerprint": reconstructor.fingerprint,
            },
        },
    )
    network, counts = agent.policy.features_extractor.network, token_counts(train, reconstructor.vocab_size)
    if earlier:
        continue_policy(agent.policy, earlier, args.init_from)
        if network.reader is not None:
            network.reader.start_from(reconstructor.model, counts)  # drafts are read as today's receiver does; the token embedding is shared
    else:
        network.start_from(reconstructor.model, counts)
    return agent


def pretrained_layers(args, reconstructor):
    """The arguments of PretrainedLayers for the first `--pretrained_layers` blocks of a reconstructor; None if that is 0."""
    config, blocks = reconstructor.model.config, args.pretrained_layers
    if blocks is None:
        blocks = min(PRETRAINED_LAYERS, config.num_hidden_layers // 2)
    if blocks > config.num_hidden_layers:
        raise InputError(f"--pretrained_layers {blocks}: expected at most {config.num_hidden_layers}, the reconstructor's blocks; choose fewer")
    if not blocks:
        return None
    shape = {name: value for name, value in config.to_dict().items() if name not in ("_name_or_path", "architectures", "dtype", "transformers_version")}
    return {"config": shape, "blocks": blocks, "bos_id": reconstructor.bos_id, "mask_id": reconstructor.mask_id, "rate": args.pretrained_rate, "attention": reconstructor.attention}


def built(policy):
    """How a policy was built, by the names of the flags: policies that are alike in all of it can take each other's weights."""
    network, kwargs = policy.features_extractor.network, dict(policy.features_extractor_kwargs)
    pretrained = {"blocks": 0, "attention": "bidirectional", "config": {}} | (kwargs.pop("pretrained", None) or {})
    pretrained |= json.loads(json.dumps(pretrained.pop("config")))  # as it comes out of a file
    for name in ("rate", "mask_id"):  # the second is the tokenizer's
        pretrained.pop(name, None)
    kwargs.pop("draft_threshold", None)
    return {"credit": "token" if policy.per_token else "text", "passes": network.passes} | kwargs | {
        "without": sorted(kwargs.get("without", ())), "vocabulary": network.embedding.num_embeddings,
        **{f"pretrained {name}": value for name, value in pretrained.items()}, "draft_threshold": network.draft_threshold if network.reader else None,
    }


def continue_policy(policy, earlier, path):
    """Give a policy the weights of an earlier one, saved at `path`. Raises InputError if that was built otherwise or for another tokenizer."""
    theirs, ours = built(earlier), built(policy)
    different = [name for name in ours if theirs.get(name) != ours[name]]
    if different:
        raise InputError(f"--init_from {path}: expected a policy with {different[0]} {ours[different[0]]}, found {theirs.get(different[0])}; train with the flags, data and reconstructor's tokenizer that it was trained with")
    policy.load_state_dict(earlier.state_dict())


def training_environment(args, device):
    """What a run trains on: the environment, the reconstructor in it, and training and held-out texts."""
    reconstructor = Reconstructor.load(args.reconstructor_path, device)
    train, held_out, length = open_splits(args, reconstructor)
    env = TokenCompressionVecEnv(train, reconstructor, length, args.n_envs, (args.min_price, args.max_price))
    return env, reconstructor, train, held_out


def environments(count):
    """The largest number of environments, up to MAX_EVAL_ENVS, that divides `count` episodes: each is run exactly once."""
    return max(n for n in range(1, MAX_EVAL_ENVS + 1) if count % n == 0)


def main(argv=None):
    train_agent(parse_args(argv))


def train_agent(args):
    """A whole run, as the command line in `args` says."""
    device = find_device(args.device)
    env, reconstructor, train, held_out = training_environment(args, device)
    length = env.action_space.shape[0]
    logs, checkpoint_dir = make_output_dir(args.output_dir) / "tb_logs", args.output_dir / "checkpoints"
    eval_env = TokenCompressionVecEnv(held_out, reconstructor, length, environments(len(held_out) * len(args.eval_prices)), args.eval_prices, shuffle=False)
    if args.resume:
        agent, before = load_newest(checkpoint_dir, args, env, device)
    else:
        agent, before = build_agent(args, env, reconstructor, train, device), {"seconds": 0.0, "history": [], "evaluation_seconds": 0.0}
        clear(logs, checkpoint_dir)
    agent.set_logger(Logger(None, [ContinuedLog(logs, agent.num_timesteps)]))
    start = time.monotonic() - before["seconds"]

    def seconds():
        return time.monotonic() - start

    def record(evaluation):
        """Write training.json anew, so that it always describes the run whose models lie beside it."""
        write_json(
            args.output_dir / "training.json", SCHEMA, args, UNITS, seconds=seconds(), texts=agent.num_timesteps,
            parameters=sum(p.numel() for p in agent.policy.parameters() if p.requires_grad), best_J=evaluation.best_J,
            tokenizer_fingerprint=reconstructor.fingerprint, max_length=length, evaluations=evaluation.history,
        )

    def state():
        return {"args": {k: str(v) for k, v in vars(args).items()}, "seconds": seconds(), "history": evaluation.history, "evaluation_seconds": evaluation.own_seconds}

    evaluation = HeldOutEvaluation(eval_env, pad_batch(held_out, 0), (args.min_price, args.max_price), args.eval_prices, args.eval_freq, args.output_dir / "best_model.zip", record, seconds, args.patience)
    evaluation.history, evaluation.own_seconds = before["history"], before["evaluation_seconds"]
    checkpoints = Checkpoints(checkpoint_dir, args.checkpoint_freq, args.save_total_limit, state)
    agent.logger.record("hparams", HParam({k: v if isinstance(v, (int, float)) else str(v) for k, v in vars(args).items()}, {"eval/J": 0.0}))
    if (left := args.num_timesteps - agent.num_timesteps) > 0:
        agent.learn(left, callback=[evaluation, checkpoints, RolloutFigures(args.num_timesteps, args.quiet)], reset_num_timesteps=not args.resume)
        if not evaluation.exhausted():
            checkpoints.save()
    save_agent(agent, args.output_dir / "final_model.zip")
    print(f"trained on {agent.num_timesteps:,} texts in {seconds():.0f} s; best held-out J {evaluation.best_J:.4f} nats per token; written to {args.output_dir}")


def clear(logs, checkpoints):
    """Delete the logs and checkpoints of an earlier run: two runs in one log would be drawn as one zigzag line."""
    for old in [*logs.glob("events.out.tfevents.*"), *checkpoints.glob("agent_*_steps.*")]:
        old.unlink()


if __name__ == "__main__":
    run(main)
