"""The study's figures: a DataFrame in, a Figure out, and ``caption`` for a sentence from the same numbers.

No training and no file search. Methods differ by colour (colour-blind safe), marker and line, so that a grey print
can be read as well. Figures are pyplot's: in a notebook, end a bare call with a semicolon to see it once.
"""

import functools
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
from scipy.spatial import cKDTree

from icssl_lib.images import written_whole
from icssl_lib.methods import METHODS
from icssl_lib.metrics import METRIC_NAMES, method_name, summary

_PALETTE = sns.color_palette("colorblind").as_hex()
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
    fig, axes = _panels(list(history["dataset"].unique()), sharey=True)
    for ax, (dataset, group) in zip(axes[0], history.groupby("dataset", sort=False), strict=True):
        for method, rows in group.groupby("method", sort=False):
            line = rows.groupby("step")["loss"].agg(["mean", "min", "max"])
            _line(ax, method, line.index, line["mean"], line["min"], line["max"], marker="")
        ax.set(title=dataset, xlabel="Step")
    axes[0, 0].set_ylabel("Contrastive loss (nats)")
    return _legend(fig, axes)


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
    fig, axes = _panels(list(efficiency["dataset"].unique()), sharey=True)
    for ax, (dataset, group) in zip(axes[0], efficiency.groupby("dataset", sort=False), strict=True):
        fractions, methods = np.array(sorted(group["fraction"].unique())), list(group["method"].unique())
        ax.plot(fractions, fractions.max() / fractions, color="0.5", linewidth=1, label="cap: all of Train")
        ax.axhline(1, color="black", linewidth=0.8)
        for i, method in enumerate(methods):
            rows = group[group["method"] == method].sort_values("fraction")
            beside = rows["fraction"] * 1.03 ** (i - (len(methods) - 1) / 2)  # so that the intervals do not overlap
            error = [rows["factor"] - rows["low"], rows["high"] - rows["factor"]]
            ax.errorbar(beside, rows["factor"], np.maximum(error, 0), capsize=2, elinewidth=1, **_look(method))
        _fraction_axis(ax, fractions)
        ax.set(yscale="log", title=dataset)
        ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        ax.yaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_ylabel("Labels the baseline needs\n(times the method's, log)")
    return _legend(fig, axes)


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


def caption(name: str, frame: pd.DataFrame) -> str:
    """One or two sentences for the figure called ``name``, from the numbers it was drawn from.

    Args:
        name: class_sizes, loss_curves, space, accuracy_curves, figure5, label_efficiency, maps, neighbour_pictures,
            measures or recall.
        frame: what the figure function of that name takes.
    """
    return " ".join(_CAPTIONS[name](frame))


def save(fig: Figure, frame: pd.DataFrame, stem: Path) -> None:
    """Write ``stem``.png (150 dpi), .svg and .csv, each whole or not at all, the same bytes for the same numbers."""
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        for kind, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None, "Creator": None}})):
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
    return _LOOKS[order % len(_LOOKS)] | {"label": method_name(method)}


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
    fig, axes = _panels(list(table["dataset"].unique()), rows=len(metrics), sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for ax, (dataset, group) in zip(row, table.groupby("dataset", sort=False), strict=True):
            for method, rows in group.groupby("method", sort=False):
                rows = rows.sort_values("fraction")
                mean, sd = rows[metric], rows[f"{metric}_sd"].fillna(0)
                _line(ax, method, rows["fraction"], mean, mean - sd, mean + sd)
            _fraction_axis(ax, sorted(group["fraction"].unique()))
            ax.set_title(dataset)
        row[0].set_ylabel(f"{METRIC_NAMES[metric]} (0 to 1)")
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    return _legend(fig, axes)


def _legend(fig: Figure, axes: np.ndarray) -> Figure:
    """One legend below all panels."""
    entries: dict[str, object] = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label}
    if not entries:
        return fig
    columns = max(1, int(fig.get_figwidth() / 2.2))
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
    return [
        f"The {rows['rank'].max()} nearest titles of {len(own)} products, and how many bear the product's label "
        f"(thick frame). {said}.",
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
}
