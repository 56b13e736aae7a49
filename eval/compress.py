"""Send fewer tokens of a text, and get the text back.

    python eval/compress.py --input notes.txt --keep_ratio 0.7 --output notes.short.txt     # plain text, fewer tokens
    python eval/compress.py --restore notes.short.txt --output notes.restored.txt           # from that text alone
    python eval/compress.py --input notes.txt --goal read                                   # for a prompt
    python eval/compress.py --input notes.txt --target_tokens 500 --keep_numbers            # to the screen
    python eval/compress.py --input 'notes/*.md' --output short/ --keep_pattern 'https?://\\S+'
    python eval/compress.py --input posts.jsonl --text_column body --output short.jsonl
    cat notes.txt | python eval/compress.py --input - --price 3 > notes.short.txt
    python eval/compress.py --input notes.txt --lossless --output notes.rltc.json           # and back, byte for byte:
    python eval/compress.py --restore notes.rltc.json --output notes.txt
    python eval/compress.py --input notes.txt --html notes.html                             # what is kept and what comes back

Never more tokens than asked for, as the agent's tokenizer counts them in what comes out; what was asked for and what came of
it go to stderr. Protected text stays whatever is asked for: <keep>what stands between these markers</keep>, and what the flags
say. A text that is too short, of another script than the agent knows, or that would not get shorter passes through whole, and
that is said; with --target_tokens the number is kept to by every text.

A name that ends in .rltc.json makes a container: what is sent, and SHA-256 of the original and of the weights, so that a
restoration knows whether it is the original. With --lossless it always is, of any bytes: the container also has what would come
back wrong, and is proven before it is written.

JSON Lines (.jsonl or .ndjson, or any input with --text_column) come out with their own fields and "compressed", "tokens" and
"kept_tokens". From Python: `from eval.compress import Compressor`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from data.artifacts import InputError, Parser, bounded, run
from data.letters import shown
from data.limits import BATCH, PRICE
from data.scratch import make_output_dir
from eval.compressor import GOALS, Compressed, Compressor
from eval.container import SUFFIX, make_container, plain_payload, restore_file, weights_of
from eval.deciding import DEFAULT_RATIO
from eval.files import ROWS, STD, Output, called, check_apart, decoded, groups, json_lines, read_bytes, sources, targets
from eval.lossless import encode, payload_size
from eval.protect import Protection, read_names
from eval.view import page
from models.agent.files import RELEASED
from models.reconstructor.tokenizer import locate
from models.reconstructor.words import DECIDED

__all__ = ["Compressed", "Compressor", "Protection"]
ENDS, LINES = ("first", "last"), bounded(int, 0, 10**9)  # of --keep_lines
TEXT_ONLY = (  # flags that say nothing where all bytes come back
    "goal", "target_tokens", "keep_pattern", "keep_numbers", "keep_names", "keep_lines", "text_column", "explain", "html",
)
COMPRESSING = ("keep_ratio", "price", "unit", "lossless", *TEXT_ONLY)  # flags that say nothing to a restoration


def parse_args(argv=None):
    parser = Parser(__doc__, any_bytes=("input", "restore", "output", "html", "keep_names"))
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", help="what to compress: a file, a folder, a pattern such as 'notes/*.txt', or - for stdin")
    what.add_argument("--restore", metavar="FILE", help="compressed text to restore, from it alone; - for stdin")
    add("--output", default="-", help="file, or folder where there are many inputs; - for stdout")
    ask = parser.add_mutually_exclusive_group()
    ask.add_argument("--keep_ratio", type=bounded(float, 1e-6, 1), default=None,
                     help=f"tokens kept per original token, at most; {DEFAULT_RATIO} if nothing is asked for")
    ask.add_argument("--target_tokens", type=bounded(int, 0, 10**12), default=None, help="tokens kept of every text, at most")
    ask.add_argument("--price", type=PRICE, default=None,
                     help="what a token costs to send, λ in nats: what is dearer to restore stays, however much that is")
    add("--goal", choices=GOALS, default=None,
        help="what the text is sent for: to be restored, the default, or for a language model that reads it, a prompt")
    add("--unit", choices=DECIDED, default=None, help="what one decision is about; default: as of the agent")
    add("--keep_pattern", action="append", default=[], metavar="REGEX", help="what it matches stays; may be repeated")
    add("--keep_numbers", action="store_true", help="words with a digit stay")
    add("--keep_names", type=Path, default=None, metavar="FILE", help="names and phrases that stay, one a line")
    add("--keep_negations", action=argparse.BooleanOptionalAction, default=True,
        help="not, never, without, isn't and the like stay")
    add("--keep_lines", nargs=2, action="append", default=[], metavar=("first|last", "N"), help="the first or last N lines stay")
    add("--text_column", default=None, help='field of JSON Lines that has the text, "text" if it is not said')
    add("--lossless", action="store_true", help="write a container from which every byte comes back, of any input")
    add("--force", action="store_true", help="restore a container that other weights made, or that does not come back whole")
    add("--html", type=Path, default=None, metavar="FILE", help="also write a page that shows one text at keep ratios .9 to .4")
    add("--explain", action="store_true", help="also print, to stderr, for every word what it would cost to leave it out")
    add("--model_path", type=Path, default=Path(RELEASED), help="agent: a directory, or a file written by rl/train.py")
    add("--reconstructor_path", type=Path, default=None,
        help="directory of the reconstructor, if it is not where the agent's file says, or if another one restores")
    add("--batch_size", type=BATCH, default=8, help="windows of text per forward pass")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    for pair in args.keep_lines:
        if pair[0] not in ENDS:
            parser.error(f"argument --keep_lines: expected first or last and a number of lines, found {' '.join(pair)}")
        try:
            pair[1] = LINES(pair[1])
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --keep_lines: {error}")
    way, silent = ("restore", COMPRESSING) if args.restore else ("lossless", TEXT_ONLY if args.lossless else ())
    for name in silent:
        if getattr(args, name) not in (None, False, []):
            parser.error(f"argument --{name}: not allowed with argument --{way}")
    if args.text_column and args.output.endswith(SUFFIX):
        parser.error(f"argument --text_column: not allowed with a container, {args.output}, which has one text")
    if args.force and not args.restore:
        parser.error("argument --force: only allowed with argument --restore")
    return args


def protection_of(args):
    """The Protection that the command line asks for. Raises FileNotFoundError or InputError."""
    lines = {end: max([number for name, number in args.keep_lines if name == end], default=0) for end in ENDS}
    names = read_names(args.keep_names) if args.keep_names else ()
    return Protection(tuple(args.keep_pattern), args.keep_numbers, names, args.keep_negations, lines["first"], lines["last"])


def say(args, name, tokens, kept, asked, note=""):
    """One line to stderr: what was asked for, and what came of it."""
    if args.price is not None:
        wanted = f"price {args.price:g}"
    else:
        ratio = DEFAULT_RATIO if args.keep_ratio is None else args.keep_ratio
        share = f" (keep ratio {ratio:g})" * (args.target_tokens is None)
        wanted = f"asked for at most {asked:,}{share}"
    got = f"kept {kept:,} ({kept / max(1, tokens):.3f})"
    print(f"{name}: {tokens:,} tokens, {wanted}, {got}" + f"; {note}" * bool(note), file=sys.stderr)


def explain(reasons):
    """A line to stderr for every word: nats that it would cost to leave it out, and to keep it, and what came of it."""
    if reasons:
        of_receiver = f"nats per token if it is left out, if it is kept; price {reasons[0].price:.2f}"
        print(of_receiver if reasons[0].price else "percent of a reader's answers that go with it", file=sys.stderr)
    for reason in reasons:
        verdict = "protected" if reason.protected else "kept" if reason.kept else "left out"
        print(f"  {reason.cost:6.2f} {reason.keeping:5.2f}  {verdict:9s}  {reason.text!r}", file=sys.stderr)


def compress_texts(args, compressor, outputs):
    """Files or stdin, {input: output}: each to a file, or to stdout, as text or as a container."""
    for group in groups((path, decoded(called(path), read_bytes(path))) for path in outputs):
        with tqdm(unit=" tokens", unit_scale=True, disable=args.quiet) as bar:
            found = compressor.compress_many([text for _, text in group], explain=args.explain, progress=bar.update)
        for (path, text), each in zip(group, found, strict=True):
            content = each.text.encode("utf-8")
            if str(outputs[path]).endswith(SUFFIX):
                weights = weights_of(args.model_path, compressor.reconstructor)
                content = make_container(text.encode("utf-8"), "plain", weights, plain_payload(each))
            with Output(outputs[path]) as output:
                output.write(content)
            say(args, called(path), each.tokens, each.kept_tokens, each.asked, each.note)
            explain(each.reasons)
            if args.html:
                with Output(args.html) as output:
                    output.write(page(compressor, shown(Path(called(path)).name), text).encode("utf-8"))


def compress_bytes(args, compressor, outputs):
    """Files or stdin, {input: output}: each to a lossless container."""
    weights = weights_of(args.model_path, compressor.reconstructor)
    for path, output in tqdm(outputs.items(), unit=" files", disable=args.quiet or len(outputs) < 2):
        data = read_bytes(path)
        payload = encode(data, compressor.reconstructor, compressor.keep_mask)
        content = make_container(data, "lossless", weights, payload)
        with Output(output) as output:
            output.write(content)
        size, tokens = payload_size(payload), f"{payload['tokens']:,} tokens in ranks, {payload['kept']:,} of them kept"
        bits = f"{8 * size / max(1, len(data)):.2f} bits per byte"
        made = f"{size:,} bytes ({bits}), {len(content):,} in the file; restored and compared"
        print(f"{called(path)}: {len(data):,} bytes, {tokens}; {made}", file=sys.stderr)


def restore_files(args, compressor, outputs):
    """Compressed text and containers, {input: output}."""
    for path, output in outputs.items():
        data, identical = restore_file(called(path), read_bytes(path), compressor.reconstructor, args.force, args.batch_size)
        with Output(output) as output:
            output.write(data)
        if identical is not None:
            print(f"{called(path)}: {'identical to' if identical else 'not'} the original, byte for byte", file=sys.stderr)


def compress_rows(args, compressor, outputs):
    """JSON Lines, {input: output}, row by row, in their order."""
    for path, output in outputs.items():
        tokens, kept, asked, notes, rows = 0, 0, 0, 0, 0
        with Output(output) as output, tqdm(unit=" tokens", unit_scale=True, disable=args.quiet) as bar:
            for group in groups(json_lines(path, args.text_column or "text")):
                texts = [text for _, text in group]
                found = compressor.compress_many(texts, explain=args.explain, progress=bar.update)
                for (row, _), each in zip(group, found, strict=True):
                    output.write_row({**row, "compressed": each.text, "tokens": each.tokens, "kept_tokens": each.kept_tokens})
                    tokens, kept, asked = tokens + each.tokens, kept + each.kept_tokens, asked + (each.asked or 0)
                    rows, notes = rows + 1, notes + bool(each.note)
                    explain(each.reasons)
        note = f"{notes} of {rows} texts passed through whole or with all that is protected" if notes else ""
        say(args, called(path), tokens, kept, asked, note)


def read_besides(args, config):
    """What a run reads besides its inputs, [(flag, path), …]: names, and the files of the agent and of what it reads with."""
    theirs = [args.reconstructor_path or config["reconstructor"]["path"], config.get("reader", {}).get("path")]
    models = [("model_path", locate(args.model_path)), *(("reconstructor_path", locate(path)) for path in theirs if path)]
    files = [(flag, file) for flag, model in models for file in (model, *Path(model).glob("*"))]
    return files + [("keep_names", args.keep_names)] * bool(args.keep_names)


def main(argv=None):
    args = parse_args(argv)
    settings = {"reconstructor_path": args.reconstructor_path, "unit": args.unit, "batch_size": args.batch_size}
    settings["goal"] = args.goal or GOALS[0]
    ask = {"keep_ratio": args.keep_ratio, "target_tokens": args.target_tokens, "price": args.price}
    given = args.restore or args.input
    rename = lambda name: name.removesuffix(SUFFIX) if args.restore else name + SUFFIX * args.lossless
    outputs = targets(sources(given), given, args.output, rename)
    of_rows = lambda path: (args.text_column or Path(path).suffix in ROWS) and not args.output.endswith(SUFFIX)
    rows = {path: output for path, output in outputs.items() if of_rows(path)}
    if args.html and (len(outputs) > 1 or rows):
        raise InputError(f"--html {args.html}: expected one text to show, found {given}; name a file of text")
    compressor = Compressor(args.model_path, args.device, protection=protection_of(args), **settings, **ask)
    writes = [("output", path) for path in outputs.values()] + [("html", args.html)] * bool(args.html)
    check_apart([("input", path) for path in outputs] + read_besides(args, compressor.config), writes)
    for folder in {path.parent for path in outputs.values() if path != STD and not path.parent.is_dir()}:
        make_output_dir(folder)
    if args.restore:
        restore_files(args, compressor, outputs)
    elif args.lossless:
        compress_bytes(args, compressor, outputs)
    else:
        compress_texts(args, compressor, {path: output for path, output in outputs.items() if path not in rows})
        compress_rows(args, compressor, rows)


if __name__ == "__main__":
    run(main)
