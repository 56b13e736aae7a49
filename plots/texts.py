"""The figure of example texts: as they are sent, with gaps, and as they are restored."""

import matplotlib.pyplot as plt

STATES = {"hidden": ("hidden", "#C8C8C8"), "right": ("restored, right", "#B5DCF2"), "wrong": ("restored, wrong", "#F7BE81")}
COLUMNS, WIDTH = 78, 8.0  # characters per line and inches of the figure of texts: 800 pixels at 100 dots per inch
GLYPH = 0.602  # width of a character of DejaVu Sans Mono, as a share of the font size
FONT_SIZE = 72 * WIDTH / (COLUMNS + 2) / GLYPH  # points
LINE = 1.55 * FONT_SIZE / 72  # inches


def lay_out(pieces, sent):
    """A text as it is sent, with gaps one character wide, or as it is restored, in lines of COLUMNS characters, broken between
    words: (line, column, text, piece) of every token.
    """
    words = []
    for piece in pieces:
        text = " _" if sent and piece["state"] != "kept" else piece["restored"]
        text = text.replace("\n", "¶").replace("\t", " ") or "∅"
        if not words or text.startswith(" "):
            words.append([])
        words[-1].append((text, piece))
    laid, line, column = [], 0, 0
    for word in words:
        if column and column + sum(len(text) for text, _ in word) > COLUMNS:
            line, column = line + 1, 0
        for text, piece in word:
            text = text if column else text.lstrip(" ") or " "
            laid.append((line, column, text, piece))
            column += len(text)
    return laid


def draw_text(axis, laid, top, sent):
    """Draw a laid-out text below `top`, in lines; returns where it ends. Gaps and restored tokens get the colours of STATES."""
    lines = [""] * (laid[-1][0] + 1)
    for line, column, text, piece in laid:
        y, hidden = top + line, sent and piece["state"] != "kept"
        lines[line] += " " * len(text) if hidden else text
        if hidden:
            axis.add_patch(plt.Rectangle((column + len(text) - 1, y - 0.3), 1, 0.6, color=STATES["hidden"][1], linewidth=0))
        elif piece["state"] != "kept":
            space = len(text) - len(text.lstrip(" ")) if text.strip() else 0
            box = (column + space - 0.1, y - 0.42), len(text) - space + 0.2, 0.84
            axis.add_patch(plt.Rectangle(*box, color=STATES[piece["state"]][1], linewidth=0))
    for line, text in enumerate(lines):
        axis.text(0, top + line, text, family="DejaVu Sans Mono", fontsize=FONT_SIZE, va="center")
    return top + len(lines)


def texts_figure(examples):
    """Example texts, each as it is sent, with its gaps, and as it is restored."""
    texts = [(e, lay_out(e["pieces"], sent=True), lay_out(e["pieces"], sent=False)) for e in examples]
    height = 1.2 + sum(sent[-1][0] + restored[-1][0] + 6.6 for _, sent, restored in texts)
    figure = plt.figure(figsize=(WIDTH, height * LINE))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(-1, COLUMNS + 1), ylim=(height, 0))
    axis.axis("off")
    small = {"fontsize": 0.95 * FONT_SIZE, "va": "center"}
    for x, (label, colour) in zip((0, 11, 30), STATES.values(), strict=True):
        axis.add_patch(plt.Rectangle((x, 0.65), 1.6, 0.7, color=colour, linewidth=0))
        axis.text(x + 2.2, 1.0, label, **small)
    top = 2.6
    for example, sent, restored in texts:
        states = [piece["state"] for piece in example["pieces"]]
        kept, wrong = states.count("kept"), states.count("wrong")
        axis.text(0, top, f"sent: {kept} of {len(states)} tokens", weight="bold", **small)
        axis.text(COLUMNS, top, example["doc"], ha="right", color="#666666", **small)
        top = draw_text(axis, sent, top + 1.2, sent=True) + 0.4
        title = f"restored: {len(states) - kept - wrong} of the {len(states) - kept} hidden tokens are right"
        axis.text(0, top, title, weight="bold", **small)
        top = draw_text(axis, restored, top + 1.2, sent=False) + 0.8
    return figure
