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
from icssl_lib.metrics import ALL, BASELINE, METRIC_NAMES, method_name, summary

_TILTED = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}  # names of ticks that would meet


@style.styled
def class_sizes(sizes: pd.DataFrame) -> Figure:
    """The long tail (Figure 4 of the paper): instances in Train by rank of the class, head and tail told apart.

    sizes: columns dataset, rank (1 is the largest), count, part; classes absent from Train (count 0) are not drawn.
    """
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
    """For `_curves`: a row of panels per metric. A single run's table may lack dataset and seed."""
    table = summary(pd.DataFrame({"dataset": "", "method": "", "seed": 0}, results.index).assign(**results))
    return pd.concat([_around(table, metric).assign(row=f"{METRIC_NAMES[metric]} (0 to 1)") for metric in metrics])


def _around(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Column value, a mean over seeds, and one standard deviation below (low) and above (high)."""
    mean, sd = table[metric], table[f"{metric}_sd"].fillna(0)
    return table.assign(value=mean, low=mean - sd, high=mean + sd)


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
    panels for each dataset; a row for each of column row, the label of its axis, and six methods, the baseline in each.
    """
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
                    shifted = at["fraction"] * 1.03 ** (
                        i - (len(group) - 1) / 2
                    )  # so that the intervals do not overlap
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
def factors(table: pd.DataFrame) -> Figure:
    """Label efficiency on the curves: an arrow from a method's accuracy at the fewest labels to where the baseline's
    curve reaches it, and above the panel the factor between the two fractions with its 95% interval.

    table: ``metrics.summary`` with factor, low and high (nan: no factor) of ``metrics.label_efficiency``.
    """
    fig = _curves(_around(table, "accuracy").assign(row="Accuracy (0 to 1)"))
    arrow = {"arrowstyle": "-|>", "linewidth": 1.1, "color": "black", "shrinkA": 4, "shrinkB": 0}
    few = table[table["fraction"] == table["fraction"].min()].dropna(subset="factor")
    for ax in fig.axes:
        title = [ax.get_title()]
        for row in few[few["dataset"] == title[0]].itertuples():
            if row.factor > 1:
                reached = (row.fraction * row.factor, row.accuracy)
                ax.annotate("", reached, (row.fraction, row.accuracy), arrowprops=arrow, zorder=4)
            title += [f"{method_name(row.method)}: {row.factor:.1f}x [{row.low:.1f}, {row.high:.1f}]"]
        ax.set_title("\n".join(title), fontsize=8)
    return fig


@style.styled
def gain_by_size(table: pd.DataFrame) -> Figure:
    """Which classes gain, a column per dataset, a row per fraction: ``metrics.compare`` of the classes of each size (in
    Train, at_least and at_most; classes is their number)."""
    if table["dataset"].nunique() == 2:  # one, and the mean over it
        table = table[table["dataset"] != ALL]
    numbers = zip(table["at_least"], table["at_most"], table["classes"], strict=True)
    table = table.assign(size=[f"{low} ({n})" if low == high else f"{low}–{high} ({n})" for low, high, n in numbers])
    fractions, datasets = sorted(table["fraction"].unique()), table["dataset"].unique()
    fig, axes = style.panels(datasets, rows=len(fractions), sharey=True)
    for ax, (fraction, dataset) in zip(axes.flat, product(fractions, datasets), strict=True):
        group = table[table["dataset"] == dataset].sort_values("at_least")
        ax.axhline(0, color="black", linewidth=0.8)
        sizes, here = group["size"].unique(), group[group["fraction"] == fraction]
        style.dots(ax, here, "size", sizes, "difference", table["method"].unique())
        ax.set_xticks(ax.get_xticks(), ax.get_xticklabels(), fontsize=7, **_TILTED)
        ax.set(title=dataset, xlabel="Instances in Train (classes)", ylabel=f"{fraction:.0%} of Train")
    fig.supylabel("Recall, difference (scale 0 to 1)", fontsize=9)
    return style.legend(fig, axes)


@style.styled
def ablation_grid(table: pd.DataFrame) -> Figure:
    """What one changed setting does to accuracy, of notebook 08: difference from the method with the study's settings,
    a panel per setting. The hollow mark is the study's own value."""
    table = table.sort_values("fraction", kind="stable")
    table = table.assign(method=table["fraction"].map("{:.0%} of Train".format))
    settings = list(table.groupby(["of", "setting"], sort=False))
    rows = -(-len(settings) // 4)
    fig, axes = style.grid(rows, 4, (10.8, 0.6 + 2.5 * rows), sharey=True)
    for ax in axes.flat[len(settings) :]:
        ax.axis("off")
    for ax, ((method, setting), group) in zip(axes.flat, settings, strict=False):
        own = group["reference"].iloc[0]
        values = pd.Series([own, *group["value"]]).drop_duplicates()
        values = list(values.sort_values(key=lambda column: pd.to_numeric(column, errors="coerce"), kind="stable"))
        ax.axhline(0, color="black", linewidth=0.8)
        group = group.drop_duplicates(["value", "method"])
        style.dots(ax, group, "value", values, "difference", table["method"].unique())
        ax.plot(values.index(own), 0, "o", color="black", mfc="white", markersize=8, label="the study's value")
        names = [textwrap.fill(value.replace("_", " "), 12) for value in values]
        ax.set_xticklabels(names, fontsize=8, **(_TILTED if len("".join(names)) > 25 else {}))
        ax.set_title(f"{setting}\n{method_name(method)}", fontsize=9)
    fig.supylabel("Accuracy, difference (scale 0 to 1)", fontsize=9)
    return style.legend(fig, axes)


@style.styled
def accuracy_cost(frame: pd.DataFrame) -> Figure:
    """Accuracy on Test by design, in the order of an answer's latency, from benchmarks/serving.py. A design without a
    point is an export, whose accuracy is its classifier's, or serves no method of the run."""
    fractions, methods = frame["fraction"].unique(), [method for method in frame["method"].unique() if method]
    table, costs = _around(frame, "accuracy"), frame.groupby("design")["p50_ms"].first().sort_values()
    fig, axes = style.grid(1, len(fractions), (5.3 * len(fractions), 5.2), sharey=True)
    for ax, fraction in zip(axes[0], fractions, strict=True):
        style.dots(ax, table[table["fraction"] == fraction], "design", costs.index, "value", methods)
        ax.set_xticklabels([f"{design}: {cost:.3g} ms" for design, cost in costs.items()], fontsize=8, **_TILTED)
        ax.set(title=f"{fraction:.0%} of Train", xlabel="Design: latency of one answer, median")
    axes[0, 0].set_ylabel("Accuracy on Test (0 to 1)")
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
