"""The study's figures: a DataFrame in, a Figure out, and ``caption`` for a sentence from the same numbers.

No training and no file search. Methods differ by colour (colour-blind safe), marker and line, so that a grey print
can be read as well. Figures are pyplot's: in a notebook, end a bare call with a semicolon to see it once.
"""

import functools
import itertools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression
from scipy.spatial import cKDTree

from icssl_lib.deploy import WHAT
from icssl_lib.images import written_whole
from icssl_lib.methods import METHODS
from icssl_lib.metrics import METRIC_NAMES, method_name, summary

_PALETTE = sns.color_palette("colorblind").as_hex()
_TILTED = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}  # names of ticks that would meet
_LOOKS = [
    {"color": _PALETTE[0], "marker": "o", "linestyle": "-"},
    {"color": _PALETTE[1], "marker": "s", "linestyle": "--"},
    {"color": _PALETTE[2], "marker": "D", "linestyle": "-", "linewidth": 2.4},
    {"color": _PALETTE[3], "marker": "X", "linestyle": ":"},
    {"color": _PALETTE[4], "marker": "^", "linestyle": "-."},
    {"color": _PALETTE[5], "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#444444", "marker": "P", "linestyle": (0, (1, 1))},
]
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "figure.facecolor": "white",
    "svg.hashsalt": "icssl",  # the same numbers give the same file
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the study's style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def styled(*args: object, **options: object) -> Figure:
        with mpl.rc_context(_STYLE):
            fig = draw(*args, **options)
            interactive = mpl.is_interactive()
        # A notebook's backend turns this on with the first figure; reset, no later figure would be shown.
        mpl.interactive(interactive)
        return fig

    return styled


@_styled
def class_sizes(sizes: pd.DataFrame) -> Figure:
    """The long tail (Figure 4 of the paper): instances in Train by rank of the class, head and tail told apart.

    Args:
        sizes: columns dataset, rank (1 is the largest), count, part (head or tail); classes absent from Train
            have count 0 and are not drawn.
    """
    fig, axes = _panels(list(sizes["dataset"].unique()))
    for ax, (dataset, group) in zip(axes[0], sizes.groupby("dataset", sort=False), strict=True):
        group = group[group["count"] > 0].sort_values("rank")
        for part, color, hatch in (("head", _PALETTE[0], None), ("tail", _PALETTE[1], "///")):
            rows = group[group["part"] == part]
            label = f"{part}: {len(rows)} classes"
            ax.bar(
                rows["rank"],
                rows["count"],
                1.0,
                color=color,
                hatch=hatch,
                edgecolor="white",
                lw=0,
                label=label,
            )
        if (group["part"] == "tail").any():
            boundary = group.loc[group["part"] == "head", "rank"].max() + 0.5
            ax.axvline(boundary, color="black", linestyle="--", linewidth=1)
        ax.set(yscale="log", title=dataset, xlabel="Class, by rank in Train", ylim=(0.7, None), xlim=(0.5, None))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False)
    axes[0, 0].set_ylabel("Products in Train (log)")
    return fig


def smooth(history: pd.DataFrame, points: int = 60) -> pd.DataFrame:
    """Average a loss history over neighbouring steps: at most ``points`` rows per dataset, method and seed.

    Args:
        history: columns step, loss; dataset, method and seed if present.

    Returns:
        Columns dataset, method, seed, step (the middle of the steps averaged), loss.
    """
    history = _with_keys(history)
    width = ((history.groupby("dataset")["step"].transform("max") + 1) / points).clip(lower=1)
    middle = (np.floor(history["step"] / width) + 0.5) * width
    keys = ["dataset", "method", "seed", "step"]
    return history.assign(step=middle).groupby(keys, sort=False)["loss"].mean().reset_index()


@_styled
def loss_curves(history: pd.DataFrame, points: int | None = 60) -> Figure:
    """The self-supervised loss against the step: mean over seeds, the band from the lowest seed to the highest.

    Args:
        history: columns step, loss; if present also dataset (panels), method (lines) and seed.
        points: as in ``smooth``; None: the history is smooth already.
    """
    history = smooth(history, points) if points else _with_keys(history)
    groups = _in_rows(list(history["method"].unique()), baseline="convirt")
    fig, axes = _panels(list(history["dataset"].unique()), rows=len(groups), sharey=True)
    for row, methods in zip(axes, groups, strict=True):
        looks = _looks(methods)
        for ax, (dataset, group) in zip(row, history.groupby("dataset", sort=False), strict=True):
            for method in methods:
                line = group[group["method"] == method].groupby("step")["loss"].agg(["mean", "min", "max"])
                _line(ax, method, line.index, line["mean"], line["min"], line["max"], **looks[method] | {"marker": ""})
            ax.set_title(dataset)
        row[0].set_ylabel("Loss (nats)")
    for ax in axes[-1]:
        ax.set_xlabel("Step")
    return _legend(fig, axes) if len(groups) == 1 else _row_legends(fig, axes)


@_styled
def space(measures: pd.DataFrame) -> Figure:
    """Alignment and uniformity of the embeddings before and after adaptation; lower is better in each.

    Args:
        measures: columns measure, when (before, after), value; if present also dataset (rows), method
            (lines), seed (the error bar is the standard deviation over seeds).
    """
    measures = _with_keys(measures)
    names, datasets = list(measures["measure"].unique()), list(measures["dataset"].unique())
    fig, axes = _panels(names, rows=len(datasets), width=2.6)
    for row, dataset in zip(axes, datasets, strict=True):
        for ax, name in zip(row, names, strict=True):
            group = measures[(measures["dataset"] == dataset) & (measures["measure"] == name)]
            for method, rows in group.groupby("method", sort=False):
                value = rows.groupby("when")["value"].agg(["mean", "std"]).reindex(["before", "after"])
                ax.errorbar([0, 1], value["mean"], value["std"].fillna(0), capsize=3, elinewidth=1, **_look(method))
            ax.set(xlim=(-0.3, 1.3), xticks=[0, 1], xticklabels=["before", "after"], title=name)
            ax.margins(y=0.15)
        row[0].set_ylabel(f"{dataset}\nvalue (lower is better)".strip())
    return _legend(fig, axes)


@_styled
def accuracy_curves(results: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """A metric against the fraction of Train, a panel per dataset; mean and standard deviation over seeds.

    Args:
        results: columns dataset, method, fraction, seed and ``metric``.
    """
    return _curves(results, [metric])


@_styled
def figure5(results: pd.DataFrame) -> Figure:
    """Figure 5 of the paper: macro-F1 of head and of tail against the fraction of Train, a column per dataset.

    Args:
        results: columns dataset, method, fraction, seed, head_macro_f1, tail_macro_f1; the band is the
            standard deviation over seeds.
    """
    return _curves(results, ["head_macro_f1", "tail_macro_f1"])


@_styled
def label_efficiency(efficiency: pd.DataFrame) -> Figure:
    """How many times the labels the baseline needs for a method's accuracy, with its 95% interval.

    Args:
        efficiency: columns dataset, method, fraction, factor, low, high, from ``metrics.label_efficiency``.
    """
    datasets = list(efficiency["dataset"].unique())
    groups = _in_rows(list(efficiency["method"].unique()))
    fig, axes = _panels(datasets or [""], rows=len(groups), sharey=True)
    if not datasets:
        axes[0, 0].set_title("nothing to compare, or too few fractions")
    for row, methods in zip(axes, groups, strict=True):
        looks = _looks(methods)
        for ax, (dataset, group) in zip(row, efficiency.groupby("dataset", sort=False), strict=bool(datasets)):
            fractions = np.array(sorted(group["fraction"].unique()))
            ax.plot(fractions, fractions.max() / fractions, color="0.5", linewidth=1, label="cap: all of Train")
            ax.axhline(1, color="black", linewidth=0.8)
            for i, method in enumerate(methods):
                rows = group[group["method"] == method].sort_values("fraction")
                beside = rows["fraction"] * 1.03 ** (i - (len(methods) - 1) / 2)  # so that the intervals do not overlap
                error = [rows["factor"] - rows["low"], rows["high"] - rows["factor"]]
                ax.errorbar(beside, rows["factor"], np.maximum(error, 0), capsize=2, elinewidth=1, **looks[method])
            _fraction_axis(ax, fractions)
            ax.set(yscale="log", title=dataset)
            ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
            ax.yaxis.set_minor_locator(NullLocator())
        row[0].set_ylabel("Labels the baseline needs\n(times the method's, log)")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    return _legend(fig, axes) if len(groups) == 1 else _row_legends(fig, axes)


@_styled
def contact_sheet(images: np.ndarray, titles: Sequence[str], labels: Sequence[str]) -> Figure:
    """Pictures under their titles, a row per class in order of appearance.

    Args:
        images: uint8 (n, S, S, 3).
        titles: n texts; long ones are cut.
        labels: n class names.
    """
    rows = list(dict.fromkeys(labels))
    cells = pd.Series(labels).groupby(list(labels)).cumcount()
    columns = cells.max() + 1
    size = (1.6 * columns, 2.0 * len(rows))
    fig, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for image, title, label, column in zip(images, titles, labels, cells, strict=True):
        ax = axes[rows.index(label), column]
        ax.imshow(image)
        ax.set_title("\n".join(textwrap.wrap(title, 25)[:3]), fontsize=7, loc="left", parse_math=False)
        if column == 0:
            ax.text(-0.08, 0.5, label, transform=ax.transAxes, rotation=90, va="center", ha="right", parse_math=False)
    return fig


@_styled
def maps(
    frame: pd.DataFrame, pictures: np.ndarray | None = None, pictured: Sequence[int] = (), most: int = 8
) -> Figure:
    """The same products on the maps of several views, side by side on the same axes, from ``explore.map_table``.

    Args:
        frame: columns view, position, label, x, y. The ``most`` largest classes differ by colour and marker, the others
            are grey; without labels all are.
        pictures: uint8 (n, S, S, 3), laid on the maps where the products ``pictured`` (n positions) lie, with a number
            each, so that the eye finds a product again.
    """
    views = list(frame["view"].unique())
    side = 4.6
    fig, axes = plt.subplots(
        1, len(views), figsize=(side * len(views), side + 1.1), squeeze=False, layout="constrained"
    )
    ends = frame[["x", "y"]].agg(["min", "max"]).to_numpy()
    middle, half = (
        ends.mean(axis=0),
        0.54 * np.ptp(ends, axis=0).max(),
    )  # a square, so that a step is as long everywhere
    largest = _largest(frame, most)
    size = float(np.clip(12000 * len(views) / len(frame), 1, 16))
    for ax, view in zip(axes[0], views, strict=True):
        rows = frame[frame["view"] == view]
        other = rows[~rows["label"].isin(largest)]
        ax.scatter(other["x"], other["y"], size, "0.75", marker="o", linewidths=0, rasterized=True)
        for label, color, marker in zip(largest, _CLASS_COLOURS, _CLASS_MARKERS, strict=False):
            dots = rows[rows["label"] == label]
            ax.scatter(dots["x"], dots["y"], 2 * size, color, marker=marker, linewidths=0, alpha=0.75, rasterized=True)
        at = rows.set_index("position")
        for number, position in enumerate(pictured, 1):
            _lay(ax, pictures[number - 1], at.loc[position, ["x", "y"]].to_numpy(float), str(number))
        ax.set(title=_view_title(view), xticks=[], yticks=[], box_aspect=1)
        ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
        ax.set_xlabel("UMAP, first axis (no unit)")
        ax.spines[["top", "right"]].set_visible(True)
    axes[0, 0].set_ylabel("UMAP, second axis (no unit)")
    entries = [
        mpl.lines.Line2D([], [], linestyle="", marker=marker, color=color, label=textwrap.shorten(str(label), 32))
        for label, color, marker in zip(largest, _CLASS_COLOURS, _CLASS_MARKERS, strict=False)
    ]
    if len(frame["label"].unique()) > len(largest):
        grey = "other classes" if largest else "products"
        entries.append(mpl.lines.Line2D([], [], linestyle="", marker=".", color="0.7", label=grey))
    columns = max(1, int(fig.get_figwidth() / 2.3))
    legend = fig.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return fig


@_styled
def neighbour_pictures(frame: pd.DataFrame, pictures: np.ndarray) -> Figure:
    """Products and their nearest neighbours in each view, from ``explore.neighbour_table``.

    A row is a product. A neighbour of the product's class has a thick solid frame, any other a thin dotted one.

    Args:
        frame: columns query, view, rank (0 is the product itself), title, label, similarity.
        pictures: uint8 (n, S, S, 3), one for each row of ``frame``.
    """
    views, queries = list(frame["view"].unique()), list(frame["query"].unique())
    k = int(frame["rank"].max())
    widths = [1.0] + [0.25, *[1.0] * k] * len(views)
    fig, axes = plt.subplots(
        len(queries),
        len(widths),
        figsize=(1.05 * sum(widths) + 0.3, 1.8 * len(queries) + 0.4),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"width_ratios": widths},
    )
    for ax in axes.flat:
        ax.axis("off")
    for item, picture in zip(frame.itertuples(), pictures, strict=True):
        block = views.index(item.view) * (k + 1)
        if item.rank == 0 and block:  # the product itself is shown once
            continue
        ax = axes[queries.index(item.query), block + item.rank + (1 if item.rank else 0)]
        ax.imshow(picture)
        ax.axis("on")
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        own = frame[(frame["query"] == item.query) & (frame["rank"] == 0)]["label"].iloc[0]
        agrees = item.rank > 0 and item.label == own
        for spine in ax.spines.values():
            spine.set_visible(True)
            spine.set(linewidth=2.8 if agrees else 0.8, linestyle="-" if agrees or not item.rank else ":")
            spine.set_color(_PALETTE[0] if agrees else "0.35")
        text = item.title if item.rank == 0 else item.label or item.title
        ax.set_xlabel("\n".join(textwrap.wrap(str(text), 17)[: 3 if item.rank == 0 else 2]), fontsize=6)
        ax.xaxis.label.set_parse_math(False)
        if item.rank == 0:
            ax.set_title("\n".join(textwrap.wrap(str(item.label), 15)[:2]), fontsize=7, parse_math=False)
        elif item.query == queries[0] and item.rank == 1:
            ax.set_title(_view_title(item.view), fontsize=9, loc="left", parse_math=False)
    return fig


@_styled
def measures(table: pd.DataFrame) -> Figure:
    """Measures of the space by method, for all products and for those of head and tail classes.

    Args:
        table: columns dataset (rows), measure (columns), method, part, value, low, high (95% interval over seeds; NaN:
            one seed, no interval), from ``explore.over_seeds`` of ``explore.measures``.
    """
    names = sorted(table["measure"].unique(), key=[*_BETTER, *table["measure"].unique()].index)
    datasets = list(table["dataset"].unique())
    methods = list(table["method"].unique())
    fig, axes = _panels(names, rows=len(datasets), width=2.1, sharex=True)
    parts = [part for part in ("all", "head", "tail") if (table["part"] == part).any()]
    for row, dataset in zip(axes, datasets, strict=True):
        for ax, name in zip(row, names, strict=True):
            group = table[(table["dataset"] == dataset) & (table["measure"] == name)]
            for i, method in enumerate(methods):
                rows = group[group["method"] == method].set_index("part").reindex(parts)
                _dots(ax, method, np.arange(len(parts)) + _beside(i, methods), rows["value"], rows["low"], rows["high"])
            ax.set(xlim=(-0.5, len(parts) - 0.5), xticks=range(len(parts)), xticklabels=parts)
            ax.set_title(f"{name}\n({_BETTER[name]} is better)" if name in _BETTER else name, fontsize=9)
            ax.margins(y=0.12)
        row[0].set_ylabel(f"{dataset}\nvalue (no unit)".strip())
    return _legend(fig, axes)


@_styled
def recall(table: pd.DataFrame) -> Figure:
    """Cross-modal retrieval: recall among the k nearest, a column per dataset, a row per direction.

    Args:
        table: columns dataset, method, direction, k, recall, low, high (NaN: one seed), chance, from
            ``explore.over_seeds`` of ``explore.recall``.
    """
    directions, methods = list(table["direction"].unique()), list(table["method"].unique())
    fig, axes = _panels(list(table["dataset"].unique()), rows=len(directions), sharey=True)
    ks, top = sorted(table["k"].unique()), 1.08 * np.nanmax(table[["recall", "high", "chance"]].to_numpy(float))
    for row, direction in zip(axes, directions, strict=True):
        for ax, (dataset, group) in zip(row, table.groupby("dataset", sort=False), strict=True):
            group = group[group["direction"] == direction]
            for i, method in enumerate(methods):
                rows = group[group["method"] == method].set_index("k").reindex(ks)
                _dots(ax, method, np.arange(len(ks)) + _beside(i, methods), rows["recall"], rows["low"], rows["high"])
            chance = group.groupby("k")["chance"].first().reindex(ks)
            ax.hlines(chance, np.arange(len(ks)) - 0.4, np.arange(len(ks)) + 0.4, "0.35", lw=1.2, label="chance")
            ax.set(xticks=range(len(ks)), xticklabels=ks, xlim=(-0.5, len(ks) - 0.5), ylim=(0, top))
            if direction == directions[-1]:
                ax.set_xlabel("k, the nearest that count")
            if direction == directions[0]:
                ax.set_title(dataset)
        row[0].set_ylabel(f"{direction}\nRecall (0 to 1)")
    return _legend(fig, axes)


# --- beyond the paper


@_styled
def factors(table: pd.DataFrame, baseline: str = "origin") -> Figure:
    """Label efficiency on the curves: an arrow from a method's accuracy at the fewest labels to where the baseline's
    curve reaches it, and beside it the factor between the two fractions with its 95% interval.

    Args:
        table: columns dataset, method, fraction, accuracy (mean over seeds), factor, low, high (nan: no factor), from
            ``metrics.summary`` and ``metrics.label_efficiency``. Up to three methods stay readable.
    """
    fig, axes = _panels(list(table["dataset"].unique()), sharey=True)
    for ax, (dataset, group) in zip(axes[0], table.groupby("dataset", sort=False), strict=True):
        for method, rows in group.groupby("method", sort=False):
            rows = rows.sort_values("fraction")
            ax.plot(rows["fraction"], rows["accuracy"], **_look(method))
        fractions = sorted(group["fraction"].unique())
        ax.margins(y=0.12)
        first = group[(group["fraction"] == fractions[0]) & (group["method"] != baseline)].dropna(subset="factor")
        _mark_factors(ax, first, fractions)
        _fraction_axis(ax, fractions)
        ax.set(title=dataset)
    axes[0, 0].set_ylabel("Accuracy (0 to 1)")
    return _legend(fig, axes)


@_styled
def gain_by_size(table: pd.DataFrame) -> Figure:
    """Which classes gain: difference of recall by the class's instances in Train; a column per dataset, a row per
    fraction.

    Args:
        table: columns dataset, method, fraction, at_least, at_most, classes, difference, low, high, from
            ``metrics.gain_by_class_size``.
    """
    if table["dataset"].nunique() == 2:  # one, and the mean over it
        table = table[table["dataset"] != "all"]
    fractions, methods = sorted(table["fraction"].unique()), list(table["method"].unique())
    fig, axes = _panels(list(table["dataset"].unique()) or [""], rows=len(fractions) or 1, sharey=True)
    if table.empty:
        axes[0, 0].set_title("only the baseline was run")
    for row, fraction in zip(axes, fractions, strict=not table.empty):
        for ax, (dataset, group) in zip(row, table.groupby("dataset", sort=False), strict=True):
            bins = group.drop_duplicates("at_least").sort_values("at_least").set_index("at_least")
            ax.axhline(0, color="black", linewidth=0.8)
            for i, method in enumerate(methods):
                rows = group[(group["method"] == method) & (group["fraction"] == fraction)].set_index("at_least")
                rows = rows.reindex(bins.index)
                x = np.arange(len(bins)) + _beside(i, methods)
                _dots(ax, method, x, rows["difference"], rows["low"], rows["high"])
            tilt, between = (_TILTED, " ") if len(bins) > 8 else ({}, "\n")
            names = [f"{_size(a, b.at_most)}{between}({b.classes})" for a, b in bins.iterrows()]
            ax.set(xticks=range(len(bins)), xlim=(-0.5, len(bins) - 0.5))
            ax.set_xticklabels(names, fontsize=7, **tilt)
            if fraction == fractions[0]:
                ax.set_title(dataset)
            if fraction == fractions[-1]:
                ax.set_xlabel("Instances in Train (classes)")
        row[0].set_ylabel(f"{fraction:.0%} of Train\nRecall, difference (scale 0 to 1)")
    return _legend(fig, axes)


@_styled
def ablation_grid(table: pd.DataFrame, metric: str = "accuracy", dataset: str = "all") -> Figure:
    """What one changed setting does: difference from the method with the study's settings, a panel per setting.

    The study's own value is the hollow mark at 0. Numbers keep their distances, on a log scale where they are positive
    and span a factor of eight or more; anything else stands in order.

    Args:
        table: columns setting, value, reference, difference, low, high (95% interval); if present also of (the method
            that is varied), fraction (marks), metric and dataset, of which one is drawn. From ``metrics.ablations``.
    """
    table = _chosen(table, metric=metric, dataset=dataset)
    panels = list(table.groupby(["of", "setting"], sort=False))
    fractions = sorted(table["fraction"].unique())
    columns = min(4, len(panels)) or 1
    fig, axes = _panels([""] * columns, rows=-(-len(panels) // columns) or 1, width=2.7, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.axis("off")
    for ax, ((method, setting), group) in zip(axes.flat, panels, strict=False):
        names, places, scale = _places([group["reference"].iloc[0], *group["value"]])
        ax.axhline(0, color="black", linewidth=0.8)
        for i, fraction in enumerate(fractions):
            rows = group[group["fraction"] == fraction].drop_duplicates("value")
            here = [names[0], *rows["value"].astype(str)]
            x = np.array([places[name] for name in here])
            x[1:] += 0.5 * _beside(i, fractions)
            y, order = np.array([0, *rows["difference"]]), np.argsort(x)
            look = _LOOKS[i % len(_LOOKS)] | {"label": f"{fraction:.0%} of Train" if fraction else "difference"}
            error = np.nan_to_num([rows["difference"] - rows["low"], rows["high"] - rows["difference"]])
            ax.errorbar(x[1:], y[1:], error, capsize=2, elinewidth=1, **look | {"linestyle": ""})
            if scale is not None:
                ax.plot(x[order], y[order], **look | {"label": "", "marker": "", "linewidth": 0.8})
        ax.plot(
            places[names[0]], 0, "o", color="black", markerfacecolor="white", markersize=8, label="the study's value"
        )
        ticks = dict(sorted(places.items(), key=lambda item: item[1]))
        ax.set(xticks=list(ticks.values()), xlim=(min(places.values()) - 0.5, max(places.values()) + 0.5))
        tilt = _TILTED if scale is None and len(ticks) > 3 else {}
        ax.set_xticklabels([textwrap.fill(name.replace("_", " "), 12) for name in ticks], fontsize=8, **tilt)
        ax.set_xlabel(f"value{f' ({scale})' if scale else ''}", parse_math=False)
        ax.set_title(f"{setting}\n{method_name(method)}".rstrip(), fontsize=9, parse_math=False)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"{METRIC_NAMES[metric]}, difference\n(scale 0 to 1)")
    return _legend(fig, axes)


@_styled
def confusions(table: pd.DataFrame) -> Figure:
    """Pairs of classes that a method no longer confuses (won, to the right) or confuses newly (lost, to the left).

    Args:
        table: columns dataset, change, label, predicted, won, lost, from ``metrics.confusions``.
    """
    groups = list(table.groupby("dataset", sort=False)) or [("no pair of classes changed", table)]
    rows = [max(1, len(group)) for _, group in groups]
    size = (7.5, 0.2 * sum(rows) + 0.55 * len(rows) + 0.5)
    fig, axes = plt.subplots(
        len(groups), 1, figsize=size, squeeze=False, layout="constrained", sharex=True, height_ratios=rows
    )
    for ax, (dataset, group) in zip(axes[:, 0], groups, strict=True):
        net = (group["won"] - group["lost"]).to_numpy()
        for change, color, hatch in (("won", _PALETTE[0], None), ("lost", _PALETTE[1], "///")):
            kept = (group["change"] == change).to_numpy()
            ax.barh(np.flatnonzero(kept), net[kept], 0.75, color=color, hatch=hatch, edgecolor="white", label=change)
        names = [f"{_short(r.label)}, called {_short(r.predicted)}" for r in group.itertuples()]
        ax.set_yticks(range(len(group)))
        for text in ax.set_yticklabels(names, fontsize=7):
            text.set_parse_math(False)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.set_title(dataset, loc="left")
        ax.invert_yaxis()
        ax.set_axisbelow(True)
        ax.grid(visible=False, axis="y")
    axes[-1, 0].set_xlabel("Items of Test won less lost (all seeds together)")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return _legend(fig, axes)


def caption(name: str, frame: pd.DataFrame) -> str:
    """One or two sentences for the figure called ``name``, from the numbers it was drawn from.

    Args:
        name: class_sizes, loss_curves, space, accuracy_curves, figure5, label_efficiency, maps, neighbour_pictures,
            measures, recall, factors, gain_by_size, ablation_grid, confusions or accuracy_cost.
        frame: what the figure function of that name takes.
    """
    return " ".join(_CAPTIONS[name](frame))


def save(fig: Figure, frame: pd.DataFrame, stem: Path) -> None:
    """Write ``stem``.png (150 dpi; 100 where a side is over 20 inches), .svg and .csv, each whole or not at all, the
    same bytes for the same numbers."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        dpi = 150 if max(fig.get_size_inches()) <= 20 else 100
        for kind, options in (("png", {"dpi": dpi}), ("svg", {"metadata": {"Date": None, "Creator": None}})):
            with written_whole(stem.with_name(f"{stem.name}.{kind}")) as partial:
                fig.savefig(partial, format=kind, **options)
    save_table(frame, stem.with_name(f"{stem.name}.csv"))


def save_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV with six significant digits, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")


def _panels(titles: Sequence[str], rows: int = 1, width: float = 3.4, **options: object) -> tuple[Figure, np.ndarray]:
    """A grid with a column per title: the figure and its axes, (rows, columns)."""
    fig, axes = plt.subplots(
        rows,
        len(titles),
        figsize=(max(4.5, width * len(titles)), 0.6 + 2.5 * rows),
        squeeze=False,
        layout="constrained",
        **options,
    )
    return fig, axes


def _look(method: str) -> dict[str, object]:
    """Colour, marker and line of a method: fixed for the registry's, by its name for any other."""
    known = list(METHODS)
    order = known.index(method) if method in known else len(known) + sum(map(ord, method))
    turn, i = divmod(order, len(_LOOKS))
    look = _LOOKS[i] | {"label": method_name(method)}
    if turn:  # more methods than looks: hollow, with the colour and the line of another
        # Two looks have a solid line: steps of 1, 4 and 3 give no marker the same line twice, but the last one of 28.
        colour, line = (_LOOKS[(i + shift) % len(_LOOKS)] for shift in (3 * turn, (0, 1, 4, 3)[turn % 4]))
        look |= {"color": colour["color"], "linestyle": line["linestyle"], "markerfacecolor": "white"}
    return look


def _line(ax: Axes, method: str, x: object, y: object, low: object, high: object, **options: object) -> None:
    look = _look(method) | options
    ax.plot(x, y, **look)
    ax.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _fraction_axis(ax: Axes, fractions: Sequence[float]) -> None:
    ax.set(xscale="log", xlabel="Fraction of Train (%, log)", xticks=list(fractions))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def _curves(results: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    table = summary(_with_keys(results))
    groups = _in_rows(list(table["method"].unique()))
    fig, axes = _panels(list(table["dataset"].unique()), rows=len(metrics) * len(groups), sharey="row")
    for row, (metric, methods) in zip(axes, itertools.product(metrics, groups), strict=True):
        looks, values = _looks(methods), table[[metric, f"{metric}_sd"]].fillna(0)
        for ax, (dataset, group) in zip(row, table.groupby("dataset", sort=False), strict=True):
            for method in methods:
                rows = group[group["method"] == method].sort_values("fraction")
                mean, sd = rows[metric], rows[f"{metric}_sd"].fillna(0)
                _line(ax, method, rows["fraction"], mean, mean - sd, mean + sd, **looks[method])
            _fraction_axis(ax, sorted(group["fraction"].unique()))
            ax.set_title(dataset)
        if len(groups) > 1:  # rows of one metric are read against each other
            low, high = (values[metric] - values.iloc[:, 1]).min(), (values[metric] + values.iloc[:, 1]).max()
            row[0].set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        row[0].set_ylabel(f"{METRIC_NAMES[metric]} (0 to 1)")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    return _legend(fig, axes) if len(groups) == 1 else _row_legends(fig, axes)


def _in_rows(methods: Sequence[str], baseline: str = "origin") -> list[list[str]]:
    """The methods of each row of panels: no more than there are looks, and the baseline in every row."""
    if len(methods) <= len(_LOOKS):
        return [list(methods)]
    first, others = [m for m in methods if m == baseline], [m for m in methods if m != baseline]
    rows = -(-len(others) // (len(_LOOKS) - len(first)))
    step = -(-len(others) // rows)
    return [first + others[i : i + step] for i in range(0, len(others), step)]


def _looks(methods: Sequence[str]) -> dict[str, dict[str, object]]:
    """Looks for a row of panels: those of the registry's methods are fixed, a variant takes one that is left, the first
    method's last, for that is the baseline's in other rows."""
    looks: dict[str, dict[str, object]] = {}
    for method in sorted(methods, key=lambda m: m not in METHODS):
        taken = {look["marker"] for look in looks.values()}
        left = [look for look in (*_LOOKS[1:], _LOOKS[0]) if look["marker"] not in taken]
        looks[method] = _look(method) if method in METHODS or not left else left[0] | {"label": method_name(method)}
    return looks


def _row_legends(fig: Figure, axes: np.ndarray) -> Figure:
    """A legend to the right of each row of panels."""
    fig.set_figwidth(fig.get_figwidth() + 2.6)
    for row in axes:
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=8, handlelength=3.2)
    return fig


def _legend(fig: Figure, axes: np.ndarray) -> Figure:
    """One legend below all panels."""
    entries: dict[str, object] = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label}
    if not entries:
        return fig
    wide = 0.8 + 0.08 * max(map(len, entries))  # inches of an entry
    columns = max(1, int(fig.get_figwidth() / wide))
    fig.set_figheight(fig.get_figheight() + 0.18 * max(0, -(-len(entries) // columns) - 2))
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)
    return fig


def _with_keys(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that a single run's table lacks."""
    return frame.assign(**{k: v for k, v in (("dataset", ""), ("method", ""), ("seed", 0)) if k not in frame})


def _caption_class_sizes(sizes: pd.DataFrame) -> list[str]:
    said = []
    for dataset, group in sizes.groupby("dataset", sort=False):
        head, absent = group["part"] == "head", int((group["count"] == 0).sum())
        share = group.loc[head, "count"].sum() / group["count"].sum()
        said.append(
            f"{dataset}: {head.sum()} of {len(group)} classes hold {share:.0%} of the products in Train (head); the "
            f"largest has {group['count'].max()}, the median class {group['count'].median():g}"
            + (f", and {absent} of Test have none." if absent else ".")
        )
    return said


def _caption_loss_curves(history: pd.DataFrame) -> list[str]:
    history = _with_keys(history)
    said = []
    for method, group in history.groupby("method", sort=False):
        last = group["step"].max()
        start = group.loc[group["step"] <= last * 0.1, "loss"].mean()
        end = group.loc[group["step"] >= last * 0.9, "loss"].mean()
        said.append(f"{method_name(method)} {start:.2f} to {end:.2f}".strip())
    return [f"Mean loss over the first and the last tenth of the steps: {'; '.join(said)}.", _LOSS_NOTE]


_LOSS_NOTE = (
    "The heights of different methods' losses are not comparable, since their positives differ; with the positive "
    "left out of the denominator a loss can be negative."
)


def _caption_space(measures: pd.DataFrame) -> list[str]:
    measures = _with_keys(measures)
    said = []
    for (method, name), group in measures.groupby(["method", "measure"], sort=False):
        value = group.groupby("when")["value"].mean()
        said.append(
            f"{method_name(method)} {name} {value.get('before', np.nan):.2f} to {value.get('after', np.nan):.2f}"
        )
    return [f"Before to after, mean over datasets and seeds: {'; '.join(s.strip() for s in said)}.", _SPACE_NOTE]


_SPACE_NOTE = "Lower alignment: positive pairs lie closer; lower uniformity: embeddings spread more evenly."


def _caption_accuracy_curves(results: pd.DataFrame) -> list[str]:
    return [_highest(results, "accuracy"), _BAND_NOTE]


def _caption_figure5(results: pd.DataFrame) -> list[str]:
    return [_highest(results, "tail_macro_f1"), _highest(results, "head_macro_f1"), _BAND_NOTE]


_BAND_NOTE = "Lines are means over seeds, bands one standard deviation; one seed has no band."


def _highest(results: pd.DataFrame, metric: str, baseline: str = "origin") -> str:
    """Which method has the highest mean at the smallest fraction, per dataset, beside the baseline's."""
    table, title = summary(_with_keys(results)).dropna(subset=metric), METRIC_NAMES[metric]
    said = []
    for dataset, group in table.groupby("dataset", sort=False):
        value = group[group["fraction"] == group["fraction"].min()].set_index("method")[metric]
        others = value.drop(value.idxmax())
        beside = f" ({method_name(baseline)} {others[baseline]:.3f})" if baseline in others else ""
        said.append(f"{dataset}: {method_name(value.idxmax())} {value.max():.3f}{beside}".removeprefix(": "))
    if not said:
        return f"{title} is not defined in any run."
    return f"Highest {title[0].lower() + title[1:]} at {table['fraction'].min():.0%} of Train: {'; '.join(said)}."


def _caption_label_efficiency(efficiency: pd.DataFrame) -> list[str]:
    if efficiency.empty:
        return ["No labels can be counted: only the baseline was run, or at too few fractions for a curve."]
    said = []
    for dataset, group in efficiency.groupby("dataset", sort=False):
        rows = group[group["fraction"] == group["fraction"].min()]
        each = [f"{method_name(r.method)} {r.factor:.1f} ({r.low:.1f} to {r.high:.1f})" for r in rows.itertuples()]
        said.append(f"{dataset}: {', '.join(each)}")
    return [
        f"Times the labels the baseline needs at {efficiency['fraction'].min():.0%} of Train, with 95% intervals: "
        f"{'; '.join(said)}.",
        "On the grey line the baseline needs all of Train or does not get there: the factor is a lower bound.",
        "At the smallest fraction no factor below 1 can be measured.",
    ]


_CLASS_COLOURS = [color for i, color in enumerate(_PALETTE) if i != 7]  # the palette's own grey is for the others
_CLASS_MARKERS = ["o", "s", "D", "X", "^", "v", "P", "*", "<"]
_BETTER = {
    "title alignment": "lower",
    "title-picture alignment": "lower",
    "uniformity": "lower",
    "anisotropy": "lower",
    "label agreement": "higher",
    "effective rank": "higher",
}


def _view_title(view: str) -> str:
    """A view of a study, "convirt seed 0", as people read it; any other name as it is."""
    method, _, seed = str(view).partition(" ")
    return f"{method_name(method)}{seed and ', '}{seed}" if method in METHODS else str(view)


def _largest(frame: pd.DataFrame, most: int) -> list[str]:
    sizes = frame.loc[frame["label"] != "", "label"].value_counts()
    return list(sizes.sort_index().sort_values(ascending=False, kind="stable").index[: min(most, len(_CLASS_MARKERS))])


def _lay(ax: Axes, picture: np.ndarray, at: np.ndarray, number: str) -> None:
    """A thumbnail with its number, over the point ``at``."""
    box = mpl.offsetbox.OffsetImage(picture, zoom=22 / len(picture))
    ax.add_artist(
        mpl.offsetbox.AnnotationBbox(box, at, pad=0.1, bboxprops={"edgecolor": "black", "linewidth": 0.8}, zorder=5)
    )
    style = {"boxstyle": "circle,pad=0.15", "facecolor": "black", "edgecolor": "white", "linewidth": 0.6}
    ax.annotate(
        number, at, (-12, 12), textcoords="offset points", fontsize=6, color="white", ha="center", va="center",
        bbox=style, zorder=6,
    )  # fmt: skip


def _beside(i: int, methods: Sequence[str]) -> float:
    """How far a method's dots stand from the tick, so that intervals do not overlap."""
    return 0.7 * (i - (len(methods) - 1) / 2) / len(methods)


def _dots(ax: Axes, method: str, x: np.ndarray, y: pd.Series, low: pd.Series, high: pd.Series) -> None:
    look = _look(method) | {"linestyle": ""}
    error = np.nan_to_num([y - low, high - y])
    ax.errorbar(x, y, error, capsize=2, elinewidth=1, **look)


def _caption_maps(frame: pd.DataFrame) -> list[str]:
    views = {view: rows.sort_values("position") for view, rows in frame.groupby("view", sort=False)}
    said = []
    if (frame["label"] != "").any():
        shares = []
        for view, rows in views.items():
            _, near = cKDTree(rows[["x", "y"]]).query(rows[["x", "y"]], min(11, len(rows)))
            label = rows["label"].to_numpy()
            shares.append(f"{_view_title(view)}: {(label[near[:, 1:]] == label[:, None]).mean():.0%}")
        said.append(f"How many of a product's 10 nearest on the map bear its label: {'; '.join(shares)}.")
    first, last = next(iter(views)), next(reversed(views))
    if first != last:
        way = np.linalg.norm(views[last][["x", "y"]].to_numpy() - views[first][["x", "y"]].to_numpy(), axis=1)
        corners = frame[["x", "y"]].quantile([0.01, 0.99]).to_numpy()
        across = np.linalg.norm(corners[1] - corners[0])
        said.append(
            f"From {_view_title(first)} to {_view_title(last)} half of the products move farther than "
            f"{np.median(way) / across:.0%} of the map's diagonal. Notice which classes gather, and find a numbered "
            "picture again: a product that kept its neighbours keeps its place."
        )
    return [*said, "Distances between far groups mean little."]


def _caption_neighbour_pictures(frame: pd.DataFrame) -> list[str]:
    own = frame[frame["rank"] == 0].drop_duplicates("query").set_index("query")["label"]
    rows = frame[frame["rank"] > 0]
    agrees = (rows["label"] == rows["query"].map(own)).groupby(rows["view"], sort=False).mean()
    said = "; ".join(f"{_view_title(view)}: {share:.0%}" for view, share in agrees.items())
    products = f"{len(own)} product{'s' * (len(own) != 1)}"
    return [
        f"The {rows['rank'].max()} nearest titles of {products}, and how many bear the product's label (thick frame). "
        f"{said}.",
        "Only titles were compared: notice where neighbours look alike although no title says so.",
    ]


def _caption_measures(table: pd.DataFrame) -> list[str]:
    said = []
    for name, group in table[table["part"] == "all"].groupby("measure", sort=False):
        value = group.groupby("method", sort=False)["value"].mean()
        each = ", ".join(f"{method_name(method)} {v:.3g}" for method, v in value.items())
        said.append(f"{name}: {each}")
    several = (table["seeds"] > 1).any() if "seeds" in table else table["low"].notna().any()
    bars = "Bars are 95% intervals over seeds (Student's t)" if several else "One seed: no interval"
    return [
        f"All products, mean over data sets and seeds: {'; '.join(said)}.",
        f"{bars}; an encoder without adaptation has one value.",
    ]


def _caption_recall(table: pd.DataFrame) -> list[str]:
    said = []
    k = table["k"].max()
    for dataset, group in table[table["k"] == k].groupby("dataset", sort=False):
        each = [
            f"{method_name(method)} {' and '.join(f'{v:.1%}' for v in rows['recall'])}"
            for method, rows in group.groupby("method", sort=False)
        ]
        said.append(f"{dataset}: {', '.join(each)} (chance {' and '.join(f'{v:.1%}' for v in _chance(group))})")
    ways = " and ".join(table["direction"].unique())
    return [
        f"The right one is among the {k} nearest of Dev ({ways}): {'; '.join(said)}.",
        "Shuffled pairs should stay at chance: they share a space with pictures, and no meaning.",
    ]


def _chance(group: pd.DataFrame) -> pd.Series:
    return group.groupby("direction", sort=False)["chance"].first()


# --- beyond the paper


def _mark_factors(ax: Axes, rows: pd.DataFrame, fractions: Sequence[float]) -> None:
    """Arrows to where the baseline is as accurate; factors stand below their ends, where no curve is."""
    step, below = 0.075 * np.ptp(ax.get_ylim()), np.inf
    for row in rows.sort_values("accuracy", ascending=False).itertuples():
        reach = row.fraction * row.factor
        arrow = {"arrowstyle": "-|>", "linewidth": 1.1, "color": "black", "shrinkA": 4, "shrinkB": 0}
        if row.factor > 1:
            ax.annotate("", (reach, row.accuracy), (row.fraction, row.accuracy), arrowprops=arrow, zorder=4)
        below = min(row.accuracy, below - step)  # methods as accurate as each other: one under the other
        name = f"{method_name(row.method)}: " if len(rows) > 1 else ""
        far = reach**2 > 2 * fractions[0] * fractions[-1]  # no room to the right
        ax.annotate(
            f"{name}{row.factor:.1f}x [{row.low:.1f}, {row.high:.1f}]",
            (fractions[-1] if far else reach, below),
            (0 if far else 4, -4),
            textcoords="offset points",
            fontsize=7,
            ha="right" if far else "left",
            va="top",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
            zorder=5,
        )


def _size(at_least: float, at_most: float) -> str:
    return f"{at_least:g}" if at_least == at_most else f"{at_least:g}–{at_most:g}"


def _short(label: str) -> str:
    return textwrap.shorten(str(label), 34, placeholder=" ...") or str(label)[:34]


def _chosen(table: pd.DataFrame, **keys: str) -> pd.DataFrame:
    """The rows of one metric and dataset; the columns that a plain table lacks are added."""
    for column, value in keys.items():
        if column in table:
            table = table[table[column] == value]
    return table.assign(**{k: v for k, v in (("of", ""), ("fraction", 0.0)) if k not in table})


def _places(values: Sequence[object]) -> tuple[list[str], dict[str, float], str | None]:
    """Where values stand on an axis: their names, name -> place (about one apart), and the scale (None: in order)."""
    names = list(dict.fromkeys(map(str, values)))
    try:
        numbers = np.array([float(name) for name in names])
    except ValueError:
        return names, {name: float(i) for i, name in enumerate(names)}, None
    logarithmic = numbers.min() > 0 and numbers.max() >= 8 * numbers.min()
    at = np.log(numbers) if logarithmic else numbers
    at = (at - at.min()) / (np.ptp(at) or 1) * (len(at) - 1)
    return names, dict(zip(names, at.tolist(), strict=True)), "log" if logarithmic else ""


def _caption_factors(table: pd.DataFrame, baseline: str = "origin") -> list[str]:
    rows = table[(table["fraction"] == table["fraction"].min()) & (table["method"] != baseline)].dropna(subset="factor")
    if rows.empty:
        return ["No method's labels can be counted: only the baseline was run."]
    said, capped = [], []
    best = table[table["method"] == baseline].groupby("dataset")["accuracy"].max()
    for method, group in rows.groupby("method", sort=False):
        each = [f"{r.factor:.1f} [{r.low:.1f}, {r.high:.1f}] in {r.dataset}" for r in group.itertuples()]
        said.append(f"{method_name(method)}: {', '.join(each)}")
        capped += [f"{method_name(method)} in {r.dataset}" for r in group.itertuples() if r.accuracy > best[r.dataset]]
    return [
        f"How many times the labels {method_name(baseline)} needs to be as accurate as a method with "
        f"{rows['fraction'].iloc[0]:.0%} of Train, with 95% intervals: {'; '.join(said)}.",
        f"It never gets as far, so the factor is a lower bound: {', '.join(capped)}." if capped else
        "Read an arrow from left to right: as accurate, with so many times the labels.",
    ]  # fmt: skip


def _caption_gain_by_size(table: pd.DataFrame) -> list[str]:
    if table.empty:
        return ["No method to compare: there is no gain by class size."]
    few, said = table[table["fraction"] == table["fraction"].min()], []
    few = few[few["dataset"] == few["dataset"].iloc[-1]]  # all data sets together, where there are several
    for method, rows in few.groupby("method", sort=False):
        ends = [rows.loc[rows["at_least"].idxmin()], rows.loc[rows["at_least"].idxmax()]]
        each = [
            f"{r.difference:+.3f} [{r.low:+.3f}, {r.high:+.3f}] for classes of {_size(r.at_least, r.at_most)}"
            for r in ends[: len(rows)]
        ]
        up, down = (rows["low"] > 0).sum(), (rows["high"] < 0).sum()
        said.append(
            f"{method_name(method)}: {' and '.join(each)}; of {len(rows)} sizes {up} gain and {down} lose, "
            "the interval clear of 0"
        )
    return [
        f"Recall at {few['fraction'].iloc[0]:.0%} of Train ({few['dataset'].iloc[0]}), by a class's instances in "
        f"Train. {'. '.join(said)}.",
        "Bars are 95% intervals; small classes have few items in Test.",
    ]


def _caption_ablation_grid(table: pd.DataFrame, metric: str = "accuracy", dataset: str = "all") -> list[str]:
    table = _chosen(table, metric=metric, dataset=dataset)
    if table.empty:
        return ["No variant of a method was run: there is nothing to compare."]
    clear = table[(table["low"] > 0) | (table["high"] < 0)]
    clear = clear.sort_values("difference", key=abs, ascending=False, kind="stable")
    each = [
        f"{r.setting} {r.value}{f' at {r.fraction:.0%} of Train' if r.fraction else ''}: {r.difference:+.3f} "
        f"[{r.low:+.3f}, {r.high:+.3f}]"
        for r in clear.head(5).itertuples()
    ]
    said = f"the largest: {'; '.join(each)}" if each else "none is told from luck"
    return [
        f"{METRIC_NAMES[metric]}, changed setting less the study's own (hollow): of {len(table)} differences "
        f"{len(clear)} have a 95% interval clear of 0; {said}.",
        f"About {0.05 * len(table):.1f} would be by luck alone, if no setting mattered.",
    ]


def _caption_confusions(table: pd.DataFrame) -> list[str]:
    said = []
    for dataset, group in table.groupby("dataset", sort=False):
        for change, rows in group.groupby("change", sort=False):
            r = rows.iloc[0]
            said.append(
                f"In {dataset} most often {change}: {r['label']} called {r['predicted']} "
                f"({r['won']} won, {r['lost']} lost of {r['of']})"
            )
    if not said:
        return ["No pair of classes is confused more or less often than by the baseline."]
    return [
        f"{'. '.join(said)}.",
        "Counts are items times seeds; won: the baseline was wrong in this way and the method right.",
    ]


# --- accuracy against cost


_COSTS = {
    "p50_ms": "Latency of one answer (ms, median, log)",
    "gflops": "Arithmetic of one answer (GFLOP, log)",
    "bytes_per_request": "Size of one request (bytes, log)",
}


@_styled
def accuracy_cost(frame: pd.DataFrame, by: str = "p50_ms") -> Figure:
    """Accuracy on Test against what an answer costs, a panel per fraction of Train.

    Costs are named above the panel, methods beside it. A cost without a point is of a design that no method of the run
    is served by, or of an export, whose accuracy is its classifier's.

    Args:
        frame: of ``deploy.accuracy_against_cost``.
        by: p50_ms, gflops or bytes_per_request.
    """
    fractions = list(frame["fraction"].unique())
    size = (5.3 * len(fractions), 4.0)
    fig, axes = plt.subplots(1, len(fractions), figsize=size, squeeze=False, layout="constrained")
    low, high = np.log10(frame[by].min()), np.log10(frame[by].max())
    wide = max(high - low, 0.3)
    ends = low - 0.08 * wide, high + 0.08 * wide
    for ax, fraction in zip(axes[0], fractions, strict=True):
        group = frame[frame["fraction"] == fraction]
        _name_costs(ax, group.groupby("what", sort=False)[by].first(), ends)
        _name_points(ax, group.dropna(subset="accuracy"), by, ends)
        ax.set(xscale="log", xlim=10 ** np.array(ends), xlabel=_COSTS[by])
        ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(visible=False, axis="x")
        style = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        ax.text(0.98, 0.03, f"{fraction:.0%} of Train", transform=ax.transAxes, ha="right", weight="bold", bbox=style)
    axes[0, 0].set_ylabel("Accuracy on Test (0 to 1)")
    return fig


def _name_costs(ax: Axes, costs: pd.Series, ends: tuple[float, float]) -> None:
    """A line at each cost, and above the axes the design that it is of."""
    costs = costs.sort_values()
    at = (np.log10(costs.to_numpy()) - ends[0]) / (ends[1] - ends[0])  # in widths of the axes
    across = ax.get_xaxis_transform()
    for what, cost, x, place in zip(costs.index, costs, at, _spread(at, 0.1), strict=True):
        ax.axvline(cost, color="0.6", linewidth=0.9, linestyle=":", zorder=1)
        ax.plot([x, place], [1.0, 1.05], color="0.6", linewidth=0.9, transform=ax.transAxes, clip_on=False)
        ax.text(place, 1.06, WHAT[what], fontsize=8, rotation=42, rotation_mode="anchor", transform=ax.transAxes)
    ax.plot(costs, np.zeros(len(costs)), "|", color="0.3", transform=across, clip_on=False)


def _name_points(ax: Axes, rows: pd.DataFrame, by: str, ends: tuple[float, float]) -> None:
    """A point for each method, and to the right of the axes its name."""
    if rows.empty:
        ax.set(ylim=(0, 1))
        return
    rows = rows.sort_values("accuracy")
    sd = rows["accuracy_sd"].fillna(0)
    low, high = (rows["accuracy"] - sd).min(), (rows["accuracy"] + sd).max()
    room = max(0.12 * (high - low), 0.02)
    low, high = low - 1.5 * room, high + room
    at = (rows["accuracy"].to_numpy() - low) / (high - low)  # in heights of the axes
    for row, error, y, place in zip(rows.itertuples(), sd, at, _spread(at, 0.055), strict=True):
        look = _look(row.method) | {"linestyle": "", "markersize": 7}
        ax.errorbar(getattr(row, by), row.accuracy, error, capsize=2, elinewidth=1, zorder=3, **look)
        x = (np.log10(getattr(row, by)) - ends[0]) / (ends[1] - ends[0])
        line = {"color": look["color"], "linewidth": 0.7, "zorder": 2, "transform": ax.transAxes, "clip_on": False}
        ax.plot([x, 1.0, 1.03], [y, y, place], **line)
        ax.text(1.04, place, look["label"], fontsize=8, va="center", transform=ax.transAxes)
    ax.set(ylim=(low, high))


def _spread(at: np.ndarray, gap: float) -> np.ndarray:
    """Ascending places, ``gap`` apart at least, and as near to ``at`` (ascending) as that allows."""
    steps = gap * np.arange(len(at))
    return isotonic_regression(at - steps).x + steps


def _caption_accuracy_cost(frame: pd.DataFrame) -> list[str]:
    said = []
    for fraction, group in frame.dropna(subset="accuracy").groupby("fraction", sort=False):
        each = [f"{method_name(row.method)} {row.accuracy:.3f}" for row in group.itertuples()]
        said.append(f"{fraction:.0%} of Train: {', '.join(each)}")
    costs = frame.groupby("what", sort=False)[["p50_ms", "gflops"]].first()
    each = [f"{WHAT[what]} {row.p50_ms:.3g} ms, {row.gflops:.2g} GFLOP" for what, row in costs.iterrows()]
    empty = [WHAT[w] for w, rows in frame.groupby("what", sort=False)["accuracy"] if rows.isna().all()]
    unnamed = [name for name in empty if "ONNX" not in name]
    return [
        f"Accuracy at {'; '.join(said)}." if said else "No method of the run is served by a design that was measured.",
        f"One answer: {'; '.join(each)}.",
        *([f"No method of this run has the cost of: {', '.join(unnamed)}."] if unnamed else []),
    ]


_CAPTIONS: dict[str, Callable[[pd.DataFrame], list[str]]] = {
    "class_sizes": _caption_class_sizes,
    "loss_curves": _caption_loss_curves,
    "space": _caption_space,
    "accuracy_curves": _caption_accuracy_curves,
    "figure5": _caption_figure5,
    "label_efficiency": _caption_label_efficiency,
    "maps": _caption_maps,
    "neighbour_pictures": _caption_neighbour_pictures,
    "measures": _caption_measures,
    "recall": _caption_recall,
    "factors": _caption_factors,
    "gain_by_size": _caption_gain_by_size,
    "ablation_grid": _caption_ablation_grid,
    "confusions": _caption_confusions,
    "accuracy_cost": _caption_accuracy_cost,
}
