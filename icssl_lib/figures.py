"""The study's figures: a DataFrame in, a Figure of pyplot's out. No training, no file search."""

import textwrap
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from icssl_lib import style
from icssl_lib.files import written_whole
from icssl_lib.metrics import BASELINE, METRIC_NAMES, summary


@style.styled
def class_sizes(sizes: pd.DataFrame) -> Figure:
    """The long tail (Figure 4 of the paper): instances in Train by rank of the class, head and tail told apart.

    sizes: columns dataset, rank (1 is the largest), count, part; classes absent from Train (count 0) are not drawn."""
    fig, axes = style.panels(sizes["dataset"].unique())
    for ax, (dataset, group) in zip(axes[0], sizes[sizes["count"] > 0].groupby("dataset", sort=False), strict=True):
        for part, color, hatch in zip(("head", "tail"), style.PALETTE, (None, "///"), strict=False):
            rows = group[group["part"] == part]
            look = {"color": color, "hatch": hatch, "edgecolor": "white", "label": f"{part}: {len(rows)} classes"}
            ax.bar(rows["rank"], rows["count"], 1.0, lw=0, **look)
        ax.axvline((group["part"] == "head").sum() + 0.5, color="black", linestyle="--", linewidth=1)
        ax.set(yscale="log", title=dataset, xlabel="Class, by rank in Train", ylim=(0.7, None), xlim=(0.5, None))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False)
    axes[0, 0].set_ylabel("Products in Train (log)")
    return fig


@style.styled
def accuracy_curves(results: pd.DataFrame) -> Figure:
    """Accuracy against the fraction of Train, a panel per dataset; mean and standard deviation over seeds."""
    return _curves(_by_fraction(results, "accuracy"))


@style.styled
def figure5(results: pd.DataFrame) -> Figure:
    """Figure 5 of the paper: macro-F1 of head and of tail against the fraction of Train, a column per dataset."""
    return _curves(_by_fraction(results, "head_macro_f1", "tail_macro_f1"))


def _by_fraction(results: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """For `_curves`: a row of panels per metric, one standard deviation wide. A table may lack dataset and seed."""
    table = summary(pd.DataFrame({"dataset": "", "method": "", "seed": 0}, results.index).assign(**results))
    rows = []
    for metric in metrics:
        mean, sd = table[metric], table[f"{metric}_sd"].fillna(0)
        rows.append(table.assign(value=mean, low=mean - sd, high=mean + sd, row=f"{METRIC_NAMES[metric]} (0 to 1)"))
    return pd.concat(rows)


@style.styled
def label_efficiency(efficiency: pd.DataFrame) -> Figure:
    """How many times the labels the baseline needs for a method's accuracy, of ``metrics.label_efficiency``."""
    table = efficiency.assign(row="Labels the baseline needs\n(times the method's, log)", value=efficiency["factor"])
    fig = _curves(table, bars=True)
    fractions = np.sort(efficiency["fraction"].unique())
    cap = fractions[-1] / fractions
    for ax in fig.axes:
        ax.plot(fractions, cap, color="0.5", linewidth=1)
        ax.annotate("cap: all of Train", (fractions[0], cap[0]), fontsize=7, color="0.3")
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter("{x:g}x")
    return fig


def _curves(table: pd.DataFrame, bars: bool = False) -> Figure:
    """Lines of value against the fraction of Train, low and high as a band or as error bars (``bars``). A column of
    panels for each dataset; a row for each of column row, the label of its axis, and six methods and the baseline."""
    methods, datasets, labels, fractions = (table[c].unique() for c in ("method", "dataset", "row", "fraction"))
    others = [method for method in methods if method != BASELINE]
    blocks = [others[i : i + 6] for i in range(0, len(others) or 1, 6)]
    groups = [[method for method in methods if method == BASELINE or method in block] for block in blocks]
    fig, axes = style.panels(datasets, rows=len(labels) * len(groups), sharey=True)
    fig.set_figwidth(fig.get_figwidth() + 2.6)
    for row, (label, group) in zip(axes, product(labels, groups), strict=True):
        for ax, dataset in zip(row, datasets, strict=True):
            lines = table[(table["dataset"] == dataset) & (table["row"] == label)].sort_values("fraction")
            for i, (method, own) in enumerate(style.looks_of(group).items()):
                at = lines[lines["method"] == method]
                if bars:
                    error = np.clip([at["value"] - at["low"], at["high"] - at["value"]], 0, None)
                    shifted = at["fraction"] * 1.03 ** (i - (len(group) - 1) / 2)  # no interval covers another
                    ax.errorbar(shifted, at["value"], error, capsize=2, elinewidth=1, **own)
                else:
                    ax.plot(at["fraction"], at["value"], **own)
                    ax.fill_between(at["fraction"], at["low"], at["high"], color=own["color"], alpha=0.15, linewidth=0)
            ax.set(title=dataset, xscale="log", xlabel="Fraction of Train (%, log)")
            ax.set_xticks([], minor=True)
            ax.set_xticks(fractions, [f"{100 * fraction:g}" for fraction in fractions])
        row[0].set_ylabel(label)
        if any(group):
            row[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=8, handlelength=3.2)
    return fig


@style.styled
def contact_sheet(images: np.ndarray, titles: Sequence[str], labels: Sequence[str]) -> Figure:
    """Pictures, uint8 (n, S, S, 3), under their titles (long ones are cut), a row per class in order of appearance."""
    rows = list(dict.fromkeys(labels))
    cells = pd.Series(labels).groupby(list(labels)).cumcount()
    fig, axes = style.grid(len(rows), cells.max() + 1, (1.6 * (cells.max() + 1), 2.0 * len(rows)))
    for ax in axes.flat:
        ax.set_axis_off()
    for image, title, label, column in zip(images, titles, labels, cells, strict=True):
        ax = axes[rows.index(label), column]
        ax.imshow(image)
        ax.set_title("\n".join(textwrap.wrap(title, 25)[:3]), fontsize=7, loc="left")
        if column == 0:
            ax.text(-0.08, 0.5, label, transform=ax.transAxes, rotation=90, va="center", ha="right")
    return fig


@style.styled
def intervals(table: pd.DataFrame, label: str, columns: int, ticks_label: str = "") -> Figure:
    """Values with their intervals side by side, in the table's order: a panel for each of column panel, whose names say
    what it shows, and in it for each of column tick what the methods reach. table: also method, value, low, high.
    label: of the axis of values, with its unit; ticks_label: of the other."""
    groups, methods = list(table.groupby("panel", sort=False)), table["method"].dropna().unique()
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    fig, axes = style.grid(rows, columns, (10.8 if columns > 1 else 4.5, 0.6 + 2.6 * rows), sharey=True)
    for ax in axes.flat[len(groups) :]:
        ax.axis("off")
    for ax, (panel, group) in zip(axes.flat, groups, strict=False):
        ticks = group["tick"].unique()
        for i, (method, look) in enumerate(style.looks_of(methods).items()):
            own = group[group["method"] == method].set_index("tick").reindex(ticks)
            x = np.arange(len(ticks)) + 0.7 * (i - (len(methods) - 1) / 2) / len(methods)
            error = np.nan_to_num([own["value"] - own["low"], own["high"] - own["value"]])
            ax.errorbar(x, own["value"], error, capsize=2, elinewidth=1, **look | {"linestyle": ""})
        tilted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if sum(map(len, ticks)) > 25 else {}
        names = [textwrap.fill(tick.replace("_", " "), 22 if tilted else 12) for tick in ticks]
        ax.set_xticks(range(len(ticks)), names, fontsize=8, **tilted)
        ax.set(xlim=(-0.5, len(ticks) - 0.5), title=panel, xlabel=ticks_label)
        if table["low"].min() < 0:
            ax.axhline(0, color="black", linewidth=0.8)
    fig.supylabel(label, fontsize=9)
    return style.legend(fig, axes)


def save(fig: Figure, frame: pd.DataFrame, stem: Path, svg: bool = False) -> None:
    """Write ``stem``.png (150 dpi), .csv and, if asked for, .svg: each whole, the same bytes for the same numbers."""
    save_table(frame, stem.with_name(f"{stem.name}.csv"))
    with mpl.rc_context(style.STYLE):
        for kind in ("png", "svg") if svg else ("png",):
            with written_whole(stem.with_name(f"{stem.name}.{kind}")) as partial:
                fig.savefig(partial, format=kind, dpi=150, metadata={"Date": None, "Creator": None})


def save_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV with six significant digits, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")
