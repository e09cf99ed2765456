"""How the study's figures look, and what their panels share.

Methods differ by colour (colour-blind safe), marker and line, so that a grey print can be read as well."""

import functools
import itertools
from collections.abc import Callable, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from icssl_lib.methods import METHODS
from icssl_lib.metrics import method_name

PALETTE = sns.color_palette("colorblind").as_hex()
LINES = ("-", "--", "-", ":", "-.", (0, (5, 1)), (0, (1, 1)))
LOOKS = zip([*PALETTE[:6], "#444444"], "osDX^vP", LINES, strict=True)
LOOKS = [{"color": color, "marker": marker, "linestyle": line} for color, marker, line in LOOKS]
LOOKS[2]["linewidth"] = 2.4
FILLS = ("full", "none", "left", "top", "right", "bottom")  # of markers, for more methods than looks
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.grid": True, "grid.alpha": 0.3, "lines.markersize": 5}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "icssl"}  # salt: the same file again


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw a table in the study's style, an empty one as a line that says so, and leave matplotlib's settings alone."""

    @functools.wraps(draw)
    def styled(table: pd.DataFrame, *args: object, **options: object) -> Figure:
        with mpl.rc_context(STYLE | {"text.parse_math": False}):  # titles and labels are a catalogue's, with any $
            fig = draw(table, *args, **options) if len(table) else plt.figure(figsize=(4.5, 0.6))
            if not len(table):
                fig.suptitle("nothing to compare")
                fig.add_subplot().axis("off")  # a notebook shows no figure without axes
            interactive = mpl.is_interactive()
        # A notebook's backend turns this on with the first figure; reset, no later figure would be shown.
        mpl.interactive(interactive)
        return fig

    return styled


def grid(rows: int, columns: int, size: tuple[float, float], **options: object) -> tuple[Figure, np.ndarray]:
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def panels(columns: Sequence[str], rows: int = 1, width: float = 3.4, **options: object) -> tuple[Figure, np.ndarray]:
    return grid(rows, len(columns), (max(4.5, width * len(columns)), 0.6 + 2.5 * rows), **options)


def looks_of(methods: Sequence[str]) -> dict[str, dict[str, object]]:
    """Label, colour, marker and line of each method: fixed for the registry's, for a variant one that is left."""
    numbers = {method: list(METHODS).index(method) for method in methods if method in METHODS}
    left = (i for i in itertools.count(1) if i not in numbers.values())  # the first is the baseline's alone
    looks = {}
    for method in methods:
        turn, i = divmod(numbers[method] if method in METHODS else next(left), len(LOOKS))
        line, colour = (LOOKS[(i + shift) % len(LOOKS)] for shift in (turn, 3 * turn))
        shown = {"linestyle": line["linestyle"], "color": colour["color"], "fillstyle": FILLS[turn % len(FILLS)]}
        looks[method] = LOOKS[i] | shown | {"label": method_name(method)}
    return looks


def legend(fig: Figure, axes: np.ndarray) -> Figure:
    """One legend below all panels."""
    entries = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = max(1, int(fig.get_figwidth() / (0.8 + 0.08 * max(map(len, entries), default=0))))  # inches of an entry
    fig.set_figheight(fig.get_figheight() + 0.18 * max(0, -(-len(entries) // columns) - 2))
    place = {"loc": "outside lower center", "ncols": columns}
    fig.legend(entries.values(), entries, frameon=False, handlelength=3.2, **place)
    return fig
