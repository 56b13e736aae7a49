"""Train the agent with PPO: which tokens of a text need not be sent?

    python rl/train.py --data_path data/processed/processed_data.json --output_dir models/agent/output \\
        --reconstructor_path models/reconstructor/fine-tuned --num_timesteps 1000000 --n_steps 2048 --batch_size 64 --gamma 0.99

Reads training and validation sequences, a reconstructor, which is the receiver that pays, another one if the agent is to read
with that (`--reader_path`), and, if `--init_from` names one, an agent to begin with; writes `best_model.zip` (highest J on
held-out texts), `final_model.zip`, `checkpoints/`, `tb_logs/` and `training.json`. A timestep is one text. A run that was cut
off goes on with `--resume`, on a CPU to the same weights as if it had not been.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger
from stable_baselines3.common.utils import LinearSchedule
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, run, stamped, write_json
from data.limits import LEARNING_RATE, PRICE, check_memory
from data.scratch import claimed, keep_apart
from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.files import SCHEMA as AGENT_SCHEMA
from models.agent.files import common_tokens, identity, load_weights, read_agent, save_agent
from models.agent.reader import Reader
from models.reconstructor.checkpoints import read_from, resumable
from models.reconstructor.gaps import GAPS
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.texts import open_splits, token_counts
from models.reconstructor.words import DECIDED
from rl.callbacks import RolloutFigures, held_out_figures
from rl.checkpoints import ContinuedLog, check_trained_for, delete_run, go_on, save_checkpoint, what_a_run_left
from rl.env import PRICES, TokenCompressionVecEnv
from rl.ppo import TokenPPO

SCHEMA = "rltc.training/1"
UNITS = {
    "J": "nats per original token", "distortion": "nats per original token", "nats": "nats per masked token",
    "top1": "share of masked tokens", "keep_ratio": "share of tokens", "texts": "timesteps", "prices": "nats per token saved",
    "seconds": "seconds of wall time; of an evaluation: of training before it, without evaluations", "parameters": "trained ones",
}
MAX_ENVS = 64  # texts judged at one time
SAMPLE = 80  # bytes that a token takes in a rollout and in its copy for the update, readings apart
LAST_RATE = 0.1  # of --learning_rate, at the end
LAYERS, HEADS, EMBEDDING_DIM = 2, 4, 32  # of the network; larger ones lost at equal time (rl/README.md)


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    positive = bounded(int, 1, 10**12)
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training texts, val_data.json beside")
    add("--output_dir", type=Path, default=Path("models/agent/output"), help="directory to write")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"),
        help="directory written by models/reconstructor/train_cpu.py or train_gpu.py, or models/reconstructor/base")
    add("--reader_path", type=Path, default=None,
        help="another such directory, with the same tokenizer, that the agent reads with; default: --reconstructor_path")
    add("--init_from", type=Path, default=None, help="agent whose weights training begins with; the optimiser begins anew")
    add("--num_timesteps", type=positive, default=20_000, help="texts to decide in training; each is one episode of one step")
    add("--n_steps", type=bounded(int, 2, 10**9), default=64, help="texts per rollout")
    add("--batch_size", type=bounded(int, 2, 4096), default=16, help="texts per minibatch of the update")
    add("--n_epochs", type=bounded(int, 1, 1000), default=4, help="passes over a rollout")
    add("--gamma", type=bounded(float, 0, 1), default=0.99, help="discount; changes nothing, because episodes have one step")
    add("--learning_rate", type=LEARNING_RATE, default=1e-3, help="Adam's; it falls linearly to a tenth")
    add("--critic_only", action="store_true", help="the control: no actor; kept is what the critic expects to cost more than λ")
    add("--gaps", choices=GAPS, default=GAPS[0],
        help="whether the receiver has to find where tokens are missing, which costs nats, or is told, which is not paid for")
    add("--unit", choices=DECIDED, default=DECIDED[0], help="what one decision is about")
    add("--min_price", type=PRICE, default=None,
        help="lowest λ, nats per token saved; λ is drawn log-uniformly per text; default: 0.5, or 0.15 where gaps are told")
    add("--max_price", type=PRICE, default=None, help="highest λ; default: 16, or 12 where gaps are told")
    add("--max_length", type=bounded(int, 1, 10**6), default=None,
        help="tokens per text, longer ones are cut into several; default: the data's, or the reconstructor's longest")
    add("--width", type=bounded(int, 4, 1024), default=96, help=f"width of the policy network, a multiple of {HEADS}")
    add("--eval_freq", type=positive, default=1280, help="training texts between held-out evaluations, and between checkpoints")
    add("--eval_sequences", type=bounded(int, 1, 10**6), default=48, help="held-out texts, each judged at all --eval_prices")
    add("--eval_prices", type=PRICE, nargs="+", default=[1.5, 3.0, 6.0],
        help="values of λ of the held-out evaluation; best_model.zip has the highest mean J over them")
    add("--resume", action="store_true", help="go on from the newest checkpoint; a larger --num_timesteps trains on")
    add("--device", default="auto", help="auto, cpu, cuda or mps; auto takes CUDA if there is one")
    add("--seed", type=SEED, default=42, help="seeds initial weights, order of texts, prices and decisions")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    args.min_price, args.max_price = args.min_price or PRICES[args.gaps][0], args.max_price or PRICES[args.gaps][1]
    if args.num_timesteps < args.n_steps:
        parser.error(
            f"--num_timesteps {args.num_timesteps}: expected at least one rollout, --n_steps {args.n_steps}; "
            "give more timesteps or a smaller --n_steps"
        )
    if args.min_price > args.max_price:
        parser.error(f"--min_price {args.min_price}: expected at most --max_price {args.max_price}")
    if args.width % HEADS:
        parser.error(f"--width {args.width}: expected a multiple of {HEADS}")
    if args.init_from and Path(os.path.realpath(args.init_from)).is_relative_to(os.path.realpath(args.output_dir)):
        parser.error(
            f"--init_from {args.init_from}: expected an agent outside of --output_dir, where it would be overwritten; "
            "choose another --output_dir"
        )
    return args


def environments(count):
    """The largest number of environments, up to MAX_ENVS, that divides `count` episodes: each is run exactly once."""
    return max(n for n in range(1, MAX_ENVS + 1) if count % n == 0)


def training_environment(args, device):
    """What a run trains on: the environment, and training and held-out texts."""
    reconstructor = Reconstructor.load(args.reconstructor_path, device, args.gaps)
    train, held_out, length = open_splits(args, reconstructor)
    check_memory(args.n_steps * length * SAMPLE, f"--n_steps {args.n_steps}", "give a smaller one")
    prices = (args.min_price, args.max_price)
    env = TokenCompressionVecEnv(train, reconstructor, length, environments(args.n_steps), prices, unit=args.unit)
    return env, train, held_out


def open_reader(args, env):
    """What the agent reads with: `--reader_path`, or the receiver itself.

    Raises FileNotFoundError or InputError unless it reads the same tokens, as many, and finds gaps where it has to.
    """
    receiver, length, name = env.judge.reconstructor, env.judge.max_length, f"--reader_path {args.reader_path}"
    if args.reader_path is None:
        return receiver
    reader = Reconstructor.load(args.reader_path, receiver.device, args.gaps)
    if reader.fingerprint != receiver.fingerprint:
        expected, remedy = f"expected the receiver's tokenizer {receiver.fingerprint}", "give one with that tokenizer"
        raise InputError(f"{name}: {expected}, found {reader.fingerprint}; {remedy}")
    if reader.max_length < length:
        found = f"found {reader.max_length}, its positions less one"
        raise InputError(f"{name}: expected one that reads the {length} tokens of a text, {found}; give a smaller --max_length")
    return reader


def build_agent(args, env, train, device):
    """An agent whose network starts from its reader's embeddings and the corpus' frequencies, or from `--init_from`."""
    earlier = read_agent(args.init_from) if args.init_from else None
    reconstructor = open_reader(args, env)
    if earlier:
        check_trained_for(args, earlier[0], reconstructor)
    counts = token_counts(train, reconstructor.vocab_size)
    sizes = {"embedding_dim": EMBEDDING_DIM, "width": args.width, "layers": LAYERS, "heads": HEADS}
    common = common_tokens(earlier[1], reconstructor.vocab_size, args.init_from) if earlier else Reader.common_tokens(counts)
    reader = Reader(reconstructor, common, found=args.gaps == "found", unit=args.unit)
    kind = {"prices": (args.min_price, args.max_price), "critic_only": args.critic_only}
    agent = TokenPPO(
        TokenCompressionPolicy, env, n_steps=args.n_steps // env.num_envs, batch_size=args.batch_size, n_epochs=args.n_epochs,
        gamma=args.gamma, learning_rate=LinearSchedule(args.learning_rate, LAST_RATE * args.learning_rate, 1.0),
        seed=args.seed, device=device,
        policy_kwargs={**kind, "features_extractor_kwargs": {"reader": reader, **sizes}},
    )
    agent.policy.config = {"sizes": sizes, "blocks": reader.blocks, "gaps": args.gaps, "unit": args.unit, **kind}
    agent.policy.network.start_from(reconstructor.model, counts)
    if earlier:
        load_weights(agent.policy, earlier[1], args.init_from)
    return agent


class Run(BaseCallback):
    """One training. As a callback it evaluates and saves every `--eval_freq` texts, before a rollout.

    `history` has a row per evaluation; what evaluations took, `evaluation_seconds`, is no time of training.
    """

    def __init__(self, args):
        super().__init__()
        self.args = args
        device = find_device(args.device)
        self.env, train, held_out = training_environment(args, device)
        self.reconstructor, length = self.env.judge.reconstructor, self.env.judge.max_length
        self.agent = build_agent(args, self.env, train, device)
        self.directories = {"reconstructor": self.reconstructor.directory}
        if args.reader_path:
            self.directories["reader"] = self.agent.policy.reader.reconstructor.directory
        self.named = {
            name: {"path": str(vars(args)[f"{name}_path"]), **identity(directory, args.gaps)}
            for name, directory in self.directories.items()
        }
        self.logs, self.checkpoint_dir = args.output_dir / "tb_logs", args.output_dir / "checkpoints"
        self.data = read_from(args.data_path, args.init_from)
        before = {"seconds": 0.0, "history": [], "evaluation_seconds": 0.0}
        if args.resume:
            before = go_on(self.agent, self.checkpoint_dir, args, self.data)
        self.earlier = [] if args.resume else what_a_run_left(self.logs, self.checkpoint_dir)
        self.start = time.monotonic() - before["seconds"]
        self.history, self.evaluation_seconds = before["history"], before["evaluation_seconds"]
        count = environments(len(held_out) * len(args.eval_prices))
        self.held_out = TokenCompressionVecEnv(held_out, self.reconstructor, length, count, args.eval_prices, False, args.unit)

    def _on_rollout_start(self):
        if not self.history or self.agent.num_timesteps - self.history[-1]["texts"] >= self.args.eval_freq:
            self.evaluate()
            self.earlier = delete_run(self.earlier)
            if self.agent.num_timesteps:
                self.save_state()

    def _on_step(self):
        return True

    def _on_training_end(self):
        if self.history[-1]["texts"] < self.agent.num_timesteps:
            self.evaluate()
        self.save_state()

    @property
    def best_J(self):
        return max(row["J"] for row in self.history)

    def seconds(self):
        """Wall time of the run, with its earlier parts if it was resumed."""
        return time.monotonic() - self.start

    def save_state(self):
        save_checkpoint(
            self.agent, self.checkpoint_dir, data=self.data, args={name: str(value) for name, value in vars(self.args).items()},
            **{"reader": None, **self.named}, seconds=self.seconds(), history=self.history,
            evaluation_seconds=self.evaluation_seconds,
        )

    def evaluate(self):
        """Evaluate and log; keep the best agent, and write training.json anew, so that it describes what lies beside it."""
        began, agent, texts = self.seconds(), self.agent, self.agent.num_timesteps
        figures = held_out_figures(agent, self.held_out, self.args.eval_prices)
        self.history.append({"texts": texts, "seconds": began - self.evaluation_seconds, **figures})
        for name, value in figures.items():
            agent.logger.record(f"eval/{name}", value)
        agent.logger.dump(texts)
        if figures["J"] == self.best_J:
            self.save_agent("best_model.zip")
        self.record()
        self.evaluation_seconds += self.seconds() - began
        at_prices = "  ".join(
            f"λ={price:g}: J {figures[f'J_at_{price:g}']:.3f} keep {figures[f'keep_ratio_at_{price:g}']:.2f}"
            for price in self.args.eval_prices
        )
        tqdm.write(f"{texts:>9,} texts  held-out J {figures['J']:.4f}  {at_prices}")

    def save_agent(self, name):
        """Write the agent as it is, with all that a reader of its file has to know."""
        row = self.history[-1]
        config = stamped(
            AGENT_SCHEMA, self.args, UNITS, **self.named, tokenizer_fingerprint=self.reconstructor.fingerprint,
            max_length=self.env.judge.max_length, texts=row["texts"], held_out=row, **self.agent.policy.config,
        )
        save_agent(self.agent.policy, config, self.args.output_dir / name)

    def record(self):
        write_json(
            self.args.output_dir / "training.json", SCHEMA, self.args, UNITS, weights=[*self.directories.values()],
            seconds=self.seconds(), texts=self.agent.num_timesteps, best_J=self.best_J,
            parameters=sum(p.numel() for p in self.agent.policy.parameters() if p.requires_grad),
            tokenizer_fingerprint=self.reconstructor.fingerprint, max_length=self.env.judge.max_length,
            evaluations=self.history,
        )

    def is_published(self):
        """Whether the last agent is there, and not an earlier run's."""
        try:
            return read_agent(self.args.output_dir / "final_model.zip")[0].get("held_out") == self.history[-1]
        except (OSError, InputError):
            return False

    def train(self):
        """From where it stands to the end."""
        args, agent = self.args, self.agent
        left = args.num_timesteps - agent.num_timesteps
        if left <= 0 and self.is_published():
            seen = f"trained on {agent.num_timesteps:,} texts already"
            print(f"{args.output_dir}: {seen}; nothing was changed. More: --num_timesteps")
            return
        agent.set_logger(Logger(None, [ContinuedLog(self.logs, agent.num_timesteps)]))
        hparams = {name: v if isinstance(v, (int, float)) else str(v) for name, v in vars(args).items()}
        agent.logger.record("hparams", HParam(hparams, {"eval/J": 0.0}))
        if left > 0:
            callbacks = [self, RolloutFigures(args.num_timesteps, args.quiet)]
            agent.learn(left, callback=callbacks, reset_num_timesteps=not args.resume)
        self.save_agent("final_model.zip")
        print(
            f"trained on {agent.num_timesteps:,} texts in {self.seconds():.0f} s; best held-out J {self.best_J:.4f} "
            f"nats per token; written to {args.output_dir}"
        )


def main(argv=None):
    args = parse_args(argv)
    keep_apart(args.output_dir, reconstructor_path=args.reconstructor_path, reader_path=args.reader_path)
    training = Run(args)
    with claimed(args.output_dir), resumable(training.checkpoint_dir, args):
        training.train()


if __name__ == "__main__":
    run(main)
