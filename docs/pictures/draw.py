"""The pictures of docs/kernels.md, as SVG beside this file: `python docs/pictures/draw.py`. They have a ground of their
own, and read alike on light and dark pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

BLUE, ORANGE, GREEN, PINK, GREY = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#999999"
GATES = {"i": BLUE, "f": ORANGE, "g": GREEN, "o": PINK}


class Picture:
    """A sheet of 100 by `height` units, y downward."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(9, 0.09 * height), facecolor="#fdfdfb")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 100), ylim=(height, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float = 9, **options: Any) -> None:
        options = {"ha": "center", "va": "center", "color": "#222222"} | options
        self.axes.text(x, y, text, size=size, **options)

    def box(self, x: float, y: float, w: float, h: float, colour: str, text: str = "", **options: Any) -> None:
        """`strong`: how much of the colour; the rest are options of the text."""
        strong = options.pop("strong", 0.35)
        self.axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, alpha=strong, lw=0))
        self.axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="#444444", lw=0.7))
        if text:
            self.text(x + w / 2, y + h / 2, text, **options)

    def frame(self, x: float, y: float, w: float, h: float, text: str) -> None:
        shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=1", fill=False, ec=GREY, lw=1, ls="--")
        self.axes.add_patch(shape)
        self.text(x + 1, y - 1.4, text, ha="left", color="#555555", size=8.5)

    def arrow(self, x0: float, y0: float, x1: float, y1: float, colour: str = "#444444") -> None:
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", (x1, y1), (x0, y0), arrowprops=style)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str = "#d00000") -> None:
        self.axes.plot([x0, x1], [y0, y1], color=colour, lw=1.6)


def pieces() -> Picture:
    """How time is walked, around the loop."""
    p = Picture(47)
    p.text(2, 3, "forward", ha="left", weight="bold")
    for lane, rows in enumerate(("thread 0\nrows 0 to 15", "thread 1\nrows 16 to 31")):
        y = 5.5 + 6.5 * lane
        p.text(2, y + 2.75, rows, ha="left", size=8)
        for k in range(3):
            x = 15 + 27.5 * k + 0.6 * lane * (k + 1)
            p.box(x, y, 7.5, 5.5, ORANGE, "gx = x W$_{ih}$", size=7.5)
            p.box(x + 7.5, y, 18.5, 5.5, BLUE, f"piece {k}, step by step", size=8)
    p.arrow(15, 20, 98, 20)
    p.text(56, 21.8, "time; a thread needs no other from the first step to the last", size=8, color="#555555")

    p.text(2, 26, "backward", ha="left", weight="bold")
    for lane in range(2):
        y = 28.5 + 6.5 * lane
        p.text(2, y + 2.75, ("thread 0\nrows 0 to 15", "thread 1\nrows 16 to 31")[lane], ha="left", size=8)
        for k in range(3):
            p.box(15 + 27.5 * k, y, 13, 5.5, BLUE, f"piece {2 - k}: dg", size=8)
    for k in range(3):
        x = 15 + 27.5 * k + 13
        p.line(x + 0.3, 28, x + 0.3, 41)
        p.box(
            x + 0.6,
            28.5,
            12.2,
            12,
            GREEN,
            "shared:\ndx = dg W$_{ih}$\ndW$_{ih}$ += dg$^T$ x\ndW$_{hh}$ += dg$^T$ h",
            size=7.5,
        )
        p.line(x + 13.3, 28, x + 13.3, 41)
    p.arrow(15, 43, 98, 43)
    p.text(56, 45, "last piece first; at the red lines the threads meet", size=8, color="#555555")
    return p


def panels() -> Picture:
    """How weights lie, and what stays in registers."""
    p = Picture(54)
    p.text(9, 3, "W$_{hh}$ [4H, H]", weight="bold")
    for k, (gate, colour) in enumerate(GATES.items()):
        y = 6 + 10.5 * k
        p.box(3, y, 12, 10, colour, strong=0.12)
        p.box(3, y, 12, 2.5, colour, gate, strong=0.75)
        p.arrow(15, y + 1.25, 22.5, 11 + 6 * k)
    p.text(9, 50.5, "of each gate the same\n16 units", size=8, color="#555555")

    p.text(29, 3, "panel [H][4][16]", weight="bold")
    for k, (gate, colour) in enumerate(GATES.items()):
        p.box(23 + 3 * k, 6, 3, 28, colour, strong=0.55)
        p.text(24.5 + 3 * k, 7, gate, size=8)
    for row in range(1, 14):
        p.line(23, 6 + 2 * row, 35, 6 + 2 * row, "#ffffff")
    p.text(29, 40, "packed once a call,\nread from front to end;\na slab of it stays in L1", size=8, color="#555555")

    p.text(44, 3, "h$_{t-1}$", weight="bold")
    p.box(39.5, 6, 9, 10, GREY, "6 rows\nof the batch", size=7.5)
    p.text(37.3, 19, "×", size=14)
    p.arrow(44, 16.5, 51, 21)
    p.arrow(35.5, 26, 51, 26)

    p.text(59.5, 3, "24 registers of sums", weight="bold")
    for row in range(6):
        for k, colour in enumerate(GATES.values()):
            p.box(52 + 3.8 * k, 12 + 4 * row, 3.6, 3.7, colour, strong=0.55)
    for k, gate in enumerate(GATES):
        p.text(53.8 + 3.8 * k, 10, gate)
    p.text(
        59.5,
        40,
        "6 rows × 4 gates × 16 units:\nall gates of a unit are at hand\nwhen the sums are done",
        size=8,
        color="#555555",
    )

    p.arrow(67.6, 24, 70, 24)
    p.box(70.5, 15, 11, 18, GREY, "cell\n+ gx, biases\nσ σ tanh σ\nc = f c + i g\nh = o tanh c", size=8, strong=0.2)
    for k, what in enumerate(("h for the next step", "c", "y", "i f g o c, if kept")):
        y = 15.5 + 5.6 * k
        p.arrow(81.8, y, 84.5, y)
        p.text(85, y, what, ha="left", size=8)
    p.text(83, 40, "one store each;\ngates that nobody keeps\nnever leave the core", size=8, color="#555555")
    return p


def sharing() -> Picture:
    """How a loop is divided."""
    p = Picture(40)
    one, two = BLUE, ORANGE
    for x, title in ((17, "by direction"), (50, "by rows of the batch"), (83, "by units")):
        p.text(x, 3, title, weight="bold")
    p.box(4, 7, 12, 17, one, "forward\nin time", strong=0.5)
    p.box(18, 7, 12, 17, two, "reverse", strong=0.5)
    p.box(37, 7, 26, 8.5, one, "rows 0 to 15, all units", strong=0.5)
    p.box(37, 15.5, 26, 8.5, two, "rows 16 to 31, all units", strong=0.5)
    p.box(70, 7, 13, 17, one, "all rows,\nunits\n0 to 255", strong=0.5)
    p.box(83, 7, 13, 17, two, "all rows,\nunits\n256 to 511", strong=0.5)
    p.text(17, 29, "nobody waits", size=8.5)
    p.text(50, 29, "nobody waits; each thread\nreads all of W$_{hh}$", size=8.5)
    p.text(83, 30, "each reads its half of W$_{hh}$, and the\nwhole of h: they meet once a step", size=8.5)
    p.box(30, 35, 3, 2.5, one, strong=0.5)
    p.text(34, 36.2, "thread 0", ha="left", size=8.5)
    p.box(50, 35, 3, 2.5, two, strong=0.5)
    p.text(54, 36.2, "thread 1", ha="left", size=8.5)
    return p


def kept() -> Picture:
    """What the backward finds, and what it makes anew."""
    p = Picture(50)
    p.text(2, 3, "everything kept: 5 H numbers a step and row", ha="left", weight="bold")
    p.text(2, 27, "recompute=True: H numbers", ha="left", weight="bold")
    for t in range(12):
        x = 4 + 7.8 * t
        for k, (gate, colour) in enumerate(GATES.items()):
            p.box(x, 5.5 + 2.9 * k, 5.5, 2.7, colour, gate, size=8)
        p.box(x, 5.5 + 2.9 * 4, 5.5, 2.7, GREY, "c", size=8, strong=0.55)
        p.box(x, 41, 5.5, 2.7, GREY, "c", size=8, strong=0.55)
        if 4 <= t < 8:
            for k, (gate, colour) in enumerate(GATES.items()):
                p.box(x, 29.2 + 2.9 * k, 5.5, 2.7, colour, gate, size=8, strong=0.2)
    p.arrow(97, 22.5, 4, 22.5)
    p.text(50, 24, "the backward walks from the last step to the first", size=8, color="#555555")
    p.frame(34.2, 28.4, 31.2, 16.2, "")
    p.text(
        32,
        33.5,
        "the piece at hand:\nx W$_{ih}$ and h W$_{hh}$ as two\nproducts of all its rows,\nthen gates of all its steps",
        ha="right",
        size=8,
    )
    p.text(67, 33.5, "later pieces: done,\ntheir gates forgotten", ha="left", size=8)
    p.text(50, 47.5, "h of every step is in y, the output", size=8, color="#555555")
    return p


def cuda() -> Picture:
    """Blocks of a group, and how h goes round among them."""
    p = Picture(58)
    p.text(2, 3, "one launch for the whole sequence", ha="left", weight="bold")
    p.frame(2, 8, 62, 46, "group 0: one direction, rows 0 to 15 of the batch")
    p.frame(68, 8, 30, 46, "group 1: rows 16 to 31")
    for k, colour in enumerate((BLUE, ORANGE, GREEN)):
        x = 4 + 20 * k
        p.box(x, 10, 18, 17, colour, strong=0.12)
        p.text(x + 9, 12, f"block {k}")
        p.box(x + 1, 14, 16, 5, colour, "weights of its units,\nin shared memory, to stay", size=7, strong=0.5)
        p.box(x + 1, 20, 16, 5.8, GREY, "sums and cells in registers;\nh comes through in chunks", size=7, strong=0.15)
        p.arrow(x + 9, 27, x + 9, 34)
        p.box(4 + 19.3 * k, 34.4, 19.3, 4, colour, f"units of block {k}", size=7.5, strong=0.5)
        p.arrow(x + 9, 48.5, x + 9, 51)
    p.text(23, 30.5, "write", size=8, color="#555555")
    p.text(4, 41, "y[t] in global memory: h of all units", ha="left", size=8.5)
    p.line(4, 44.5, 62, 44.5)
    p.text(
        4,
        46.8,
        "barrier of this group alone, a counter in memory; meanwhile gx and c of step t + 1 are loaded",
        size=7.5,
        ha="left",
    )
    p.text(33, 52.3, "step t + 1: each block reads all of y[t]", size=8, color="#555555")
    p.text(83, 28, "the same, with a counter\nof its own: no group\nwaits for another", size=8.5)
    return p


def cluster() -> Picture:
    """Blocks of a cluster: weights in registers, h from shared memory to shared memory."""
    p = Picture(60)
    p.text(2, 3, "step t of one cluster: a slice of the batch, all weights of a direction", ha="left", weight="bold")
    for k, colour in enumerate((BLUE, ORANGE, GREEN)):
        x = 2 + 33 * k
        p.frame(x, 8, 30, 48, f"block {k}, on a multiprocessor of its own")
        for part, other in enumerate((BLUE, ORANGE, GREEN)):
            p.box(x + 1 + 9.3 * part, 10, 9.3, 4.5, other, f"h[t-1], block {part}", size=6.5, strong=0.5)
        p.arrow(x + 15, 14.5, x + 15, 18)
        for warp in range(4):
            p.box(x + 1 + 7 * warp, 18, 7, 9, colour, "warp: its\ntiles of\nW_hh, in\nregisters", size=6.5, strong=0.5)
        p.arrow(x + 15, 27, x + 15, 30)
        p.box(x + 1, 30, 28, 4.5, GREY, "sums of the warps come together", size=7, strong=0.15)
        p.arrow(x + 15, 34.5, x + 15, 37.5)
        p.box(x + 1, 37.5, 28, 4.5, GREY, "cells, with gx[t] and c loaded before", size=7, strong=0.15)
        p.arrow(x + 15, 42, x + 15, 45)
        p.box(x + 8, 45, 14, 4.5, colour, f"h[t] of block {k}", size=7, strong=0.5)
        p.text(x + 15, 52.5, "to all blocks, each with a mailbox\nthat counts the bytes; y[t] to memory", size=7)
    return p


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    with matplotlib.rc_context({"svg.hashsalt": "fused_rnn", "svg.fonttype": "none"}):  # the same bytes at each run
        for draw in (pieces, panels, sharing, kept, cuda, cluster):
            draw().figure.savefig(folder / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
