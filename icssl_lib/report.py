"""What a run folder holds, as tables, and as a small site that needs no network: ``report/index.html``."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support

from icssl_lib import figures, metrics
from icssl_lib.catalogue import PARTS, Catalogue, head_tail, open_catalogue
from icssl_lib.config import Study
from icssl_lib.images import written_whole
from icssl_lib.methods import METHODS
from icssl_lib.paper import TABLE1
from icssl_lib.runs import RunError, piece

FIGURES = {
    "figure5": "Figure 5. Macro-F1 of head and tail",
    "accuracy": "Accuracy against the fraction of Train",
    "label_efficiency": "Label efficiency",
}
BEYOND = {  # drawn where a study asks for their notebooks: file, title and caption
    "factor": ("What a method's labels are worth", "factors"),
    "gain_by_size": ("Gain by the size of the class", "gain_by_size"),
    "confusions": ("Confusions won and lost", "confusions"),
    "accuracy_cost": ("Accuracy against cost", "accuracy_cost"),
    "ablation_grid": ("What settings change", "ablation_grid"),
}
EXAMPLES = 4  # products shown per class, change, method and fraction
PRODUCTS = 1500  # different products on a page of classes, each with a thumbnail
SIDE = 80  # of a thumbnail, in pixels


def read_results(out: Path) -> pd.DataFrame:
    """``results.csv`` of a run folder.

    Raises:
        RunError: there are no results yet.
    """
    return _read_csv(out / "results.csv")


def read_predictions(out: Path, results: pd.DataFrame) -> pd.DataFrame:
    """The predictions behind ``results``: dataset, method, fraction, seed, id, label, predicted, confidence.

    Raises:
        RunError: a file is missing.
    """
    frames = []
    for dataset, method, seed in results[["dataset", "method", "seed"]].drop_duplicates().itertuples(index=False):
        path = piece(out, "predictions", dataset, method, seed).with_suffix(".parquet")
        if not path.is_file():
            raise RunError(f"{path}: no such predictions; run `make study` first")
        frames.append(pd.read_parquet(path))
    return pd.concat(frames, ignore_index=True)


def class_sizes(catalogues: Sequence[Catalogue]) -> pd.DataFrame:
    """Columns dataset, label, rank, count (in Train), part (head or tail); Test's labels absent from Train count 0."""
    frames = []
    for catalogue in catalogues:
        counts = catalogue.label_counts
        absent = sorted(set(catalogue.part("test")["label"]) - set(counts.index))
        counts = pd.concat([counts, pd.Series(0, index=absent, dtype=counts.dtype)])
        head, tail = head_tail(counts)
        labels = [*head, *tail]
        frame = pd.DataFrame({"dataset": catalogue.name, "label": labels, "rank": range(1, len(labels) + 1)})
        part = ["head"] * len(head) + ["tail"] * len(tail)
        frames.append(frame.assign(count=counts[labels].to_numpy(), part=part))
    return pd.concat(frames, ignore_index=True)


def heads_and_tails(out: Path, datasets: Sequence[str]) -> dict[str, metrics.HeadTail]:
    """Dataset -> (head labels, tail labels), from the run's catalogues.

    Raises:
        CatalogueError: a catalogue is absent or incomplete.
    """
    sizes = class_sizes([open_catalogue(out / "catalogues" / name) for name in datasets])
    labels = sizes.groupby(["dataset", "part"])["label"].agg(list)
    return {name: (labels[name, "head"], labels.get((name, "tail"), [])) for name in datasets}


def changed_settings(study: Study, methods: Sequence[str]) -> list[tuple[str, str, str, str, str]]:
    """The study's variants among ``methods``, as ``metrics.ablations`` takes them: (variant, of, setting, value,
    reference), such as ("cooler", "convirt", "adapt.temperature", "0.05", "0.1").

    What changes several settings at once names them all, joined by " + ", and their values in the same order. Of a
    study with variants, other methods that learn from a product's picture vary ConVIRT's "objective".
    """
    rows = []
    for name, variant in study.variants.items():
        if name not in methods or variant.of not in methods:
            continue
        keys = [(section, key) for section, changes in variant.settings.items() for key in changes]
        values = [
            ", ".join(str(getattr(getattr(which, section), key)) for section, key in keys)
            for which in (study.of(name), study)
        ]
        rows.append((name, variant.of, " + ".join(f"{section}.{key}" for section, key in keys), *values))
    for name in methods if study.variants and "convirt" in methods else ():
        entry = METHODS.get(name)
        if entry and entry.adapts and entry.pictures in ("own", "neighbours") and name != "convirt":
            rows.append((name, "convirt", "objective", entry.title.removeprefix("ConVIRT").lstrip(", "), "ConVIRT"))
    return rows


def table1(catalogues: Sequence[Catalogue]) -> pd.DataFrame:
    """Table 1: products, classes, mean title length and the split of each dataset; the paper's row below ours."""
    rows = []
    for catalogue in catalogues:
        products = catalogue.products
        row = {
            "dataset": catalogue.name,
            "source": "this run",
            "products": len(products),
            "classes": len(set(products["label"]) - {""}),
            "words": round(products["title"].str.split().str.len().mean(), 2),
        }
        rows.append(row | {part: int((products["part"] == part).sum()) for part in PARTS})
        theirs = TABLE1[TABLE1["dataset"] == catalogue.name.lower()].assign(dataset=catalogue.name, source="paper")
        rows += theirs.to_dict("records")
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(PARTS, "Int64"))


def per_class(predictions: pd.DataFrame, sizes: pd.DataFrame, baseline: str = "origin") -> pd.DataFrame:
    """F1 of each class, and its difference from the baseline's.

    A class counts as in ``metrics.macro_f1``: where it has true instances in Test.

    Args:
        predictions: columns dataset, method, fraction, seed, id, label, predicted.
        sizes: of ``class_sizes``.

    Returns:
        One row per dataset, fraction, method and class: dataset, fraction, method, label, part (head or tail), train
        and test (products of the class), f1, precision and recall (0 to 1, means over seeds), difference (f1 less the
        baseline's), low and high (lowest and highest difference of the same seed).

    Raises:
        ValueError: the baseline lacks a seed of a method.
    """
    keys, scores = ["dataset", "fraction", "method", "seed"], []
    for key, group in predictions.groupby(keys, sort=False):
        codes, names = pd.factorize(pd.concat([group["label"], group["predicted"]], ignore_index=True))
        true, called = codes[: len(group)], codes[len(group) :]
        classes = np.unique(true)
        found = precision_recall_fscore_support(true, called, labels=classes, zero_division=0)
        frame = pd.DataFrame(dict(zip(["precision", "recall", "f1", "test"], found, strict=True)))
        scores.append(frame.assign(label=names[classes], **dict(zip(keys, key, strict=True))))
    table = pd.concat(scores, ignore_index=True).astype({"test": int})  # scikit-learn's is float if nothing is right
    pairs = ["dataset", "fraction", "seed", "label"]
    theirs = table.loc[table["method"] == baseline, [*pairs, "f1"]].rename(columns={"f1": "theirs"})
    table = table.merge(theirs, "left", pairs)
    table["difference"] = table["f1"] - table.pop("theirs")
    if table["difference"].isna().any():
        lacking = table.loc[table["difference"].isna(), ["dataset", "seed"]].drop_duplicates().to_numpy().tolist()
        raise ValueError(f"no predictions of the baseline '{baseline}' for {lacking}; run the missing")
    means = {name: (name, "mean") for name in ("f1", "precision", "recall", "difference")}
    spread = {"test": ("test", "first"), "low": ("difference", "min"), "high": ("difference", "max")}
    table = table.groupby([*keys[:-1], "label"], sort=False, as_index=False).agg(**means, **spread)
    table = table.merge(sizes.rename(columns={"count": "train"}), "left", ["dataset", "label"])
    order = [*keys[:-1], "label", "part", "train", "test", "f1", "precision", "recall", "difference", "low", "high"]
    return table[order]


def gained_and_lost(predictions: pd.DataFrame, baseline: str = "origin") -> pd.DataFrame:
    """Test items that a method gets right and the baseline wrong (gained), or the reverse (lost), in most seeds.

    Right in most seeds: in more than half of them; so with two seeds it takes both, and a tie is neither.

    Args:
        predictions: columns dataset, method, fraction, seed, id, label, predicted.

    Returns:
        One row per dataset, fraction, method and item: dataset, fraction, method, id, label, change (gained or lost),
        instead (the label that the side which is wrong gives most often; ties: the first by name), margin (by how
        large a share of the seeds the method is right more often; negative where lost).
    """
    item = ["dataset", "fraction", "id"]
    right = predictions["label"] == predictions["predicted"]
    share = right.groupby([predictions[c] for c in [*item, "method"]], sort=False).mean().rename("right").reset_index()
    ours, theirs = share[share["method"] != baseline], share[share["method"] == baseline].drop(columns="method")
    pairs = ours.merge(theirs, "inner", item, suffixes=("", "_baseline"))
    gained = (pairs["right"] > 0.5) & (pairs["right_baseline"] < 0.5)
    lost = (pairs["right"] < 0.5) & (pairs["right_baseline"] > 0.5)
    pairs = pairs.assign(
        change=np.where(gained, "gained", "lost"),
        wrong=pairs["method"].where(lost, baseline),  # the side that is wrong
        margin=pairs["right"] - pairs["right_baseline"],
    )[gained | lost]
    misses = predictions[~right].groupby([*item, "method", "label", "predicted"], sort=False).size()
    misses = misses.rename("times").reset_index().sort_values(["times", "predicted"], ascending=[False, True])
    misses = misses.drop_duplicates([*item, "method"]).rename(columns={"method": "wrong", "predicted": "instead"})
    changed = pairs.merge(misses, "left", [*item, "wrong"])
    return changed[["dataset", "fraction", "method", "id", "label", "change", "instead", "margin"]]


def mistaken(predictions: pd.DataFrame, most: int = 2) -> pd.DataFrame:
    """The wrong labels that a class's Test items are given most often.

    Returns:
        Up to ``most`` rows per dataset, fraction, method and class, the most frequent first, ties by name: dataset,
        fraction, method, label, predicted, share (of the class's items, mean over seeds).
    """
    keys = ["dataset", "fraction", "method", "label"]
    counts = predictions.groupby([*keys, "predicted"], sort=False).size().rename("times").reset_index()
    counts["share"] = counts["times"] / counts.groupby(keys)["times"].transform("sum")
    counts = counts[counts["label"] != counts["predicted"]]
    counts = counts.sort_values(["times", "predicted"], ascending=[False, True]).drop(columns="times")
    return counts.groupby(keys, sort=False).head(most).reset_index(drop=True)


def classes_caption(table: pd.DataFrame, changed: pd.DataFrame, baseline: str = "origin") -> list[str]:
    """Which classes a method gained and lost: sentences from the rows of one dataset, fraction and method.

    Args:
        table: of ``per_class``.
        changed: of ``gained_and_lost``.
    """
    base, name = metrics.method_name(baseline), metrics.method_name(table["method"].iloc[0])
    up, down = (table["difference"] > 0).sum(), (table["difference"] < 0).sum()
    sure = (table["low"] > 0).sum(), (table["high"] < 0).sum()
    parts = table.groupby("part")["difference"].mean()
    means = " and ".join(f"{parts[part]:+.3f} in the {part}" for part in ("head", "tail") if part in parts)
    counts = changed.groupby("label")["change"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["gained", "lost"], fill_value=0).join(table.set_index("label")["test"])
    lost = counts["lost"].sum()
    net = (counts["gained"] - counts["lost"]).sort_values(key=abs, ascending=False, kind="stable")
    said = [
        f"At {100 * table['fraction'].iloc[0]:g}% of Train, F1 of {name} is above that of {base} in {up} of "
        f"{len(table)} classes ({sure[0]} in every seed) and below in {down} ({sure[1]} in every seed); mean "
        f"difference {means}. Of {table['test'].sum()} products in Test {len(changed) - lost} are gained and {lost} "
        "lost."
    ]
    for change, chosen, wrong in (("gained", net[net > 0], base), ("lost", net[net < 0], name)):
        each = []
        for label in chosen.index[:3]:
            instead = changed.loc[(changed["label"] == label) & (changed["change"] == change), "instead"]
            called = instead.value_counts().sort_index().sort_values(ascending=False, kind="stable")
            why = f"; {wrong} called {called.iloc[0]} of the {change} “{called.index[0]}”" if called.iloc[0] > 1 else ""
            row = counts.loc[label]
            each.append(f"{label} ({row['gained']} gained, {row['lost']} lost of {row['test']}{why})")
        if each:
            said.append(f"Most {change}: {', '.join(each)}.")
    return said


def build(study: Study, out: Path) -> Path:
    """Write the report of a finished run: ``report/index.html``, ``report/classes-<dataset>.html`` for each dataset,
    and each executed notebook as HTML.

    Reads results.csv, predictions/, catalogues/, records/, encoders/*/history.csv and space.csv, and the tables and
    pictures that the notebooks left in figures/. What the exploring notebook left is shown where it is there:
    figures/<dataset>_maps.png and <dataset>_neighbours.png, each with a caption from the .csv beside it,
    <dataset>_measures.csv and <dataset>_recall.csv, and report/map-<dataset>.html, which is linked.

    Returns:
        The path of the first page.

    Raises:
        RunError: a file of the run is missing.
    """
    results = read_results(out)
    catalogues = [open_catalogue(out / "catalogues" / name) for name in study.datasets]
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    maps = {name: f"map-{name}.html" for name in study.datasets if (folder / f"map-{name}.html").is_file()}
    explored, measured = _explored(study, out, maps), _measured(study, out)
    site = {
        "study": study.study,
        "seeds": len(study.seeds),
        "navigation": _navigation(study, maps, bool(explored or measured)),
    }
    captions = []
    for catalogue in catalogues:
        page = _classes_page(catalogue, results, out)
        captions.append((catalogue.name, page["caption"]))
        _write(folder / f"classes-{catalogue.name}.html", "classes.html", site | page, _asset("classes.js"))
    page = {
        "datasets": list(study.datasets),
        "methods": [metrics.method_name(m) for m in study.methods],
        "minutes": results["seconds"].sum() / 60,
        "table2": _table(metrics.wide(metrics.table2(results)).reset_index(), heads=2),
        "differences": _table(
            metrics.wide_differences(_read_csv(out / "figures" / "differences.csv")).reset_index(), heads=3
        ),
        "figures": _results_figures(results, out),
        "classes": captions,
        "explored": explored,
        "measured": measured,
        "tails": _tails(catalogues, out),
        "space": _space_figures(study, out),
        "table1": _table(table1(catalogues), heads=2),
        "ingest": [(c.name, _table(c.report) if len(c.report) else None) for c in catalogues],
        "machines": _machines(study, out),
        "configuration": yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "notebooks": _notebooks(out),
    }
    _write(folder / "index.html", "report.html", site | page)
    return folder / "index.html"


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _write(path: Path, template: str, context: dict[str, object], script: str = "") -> None:
    """Render a page that may run ``script`` and its own style, named by their hashes, and load nothing else."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    style = _asset("report.css")
    allowed = {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    allowed |= {"style-src": _hash(style)} | ({"script-src": _hash(script)} if script else {})
    context = context | {
        "policy": "; ".join(f"{kind} {source}" for kind, source in allowed.items()),
        "style": Markup(style),
        "script": Markup(script),
        "current": path.name,
    }
    pages = Environment(
        loader=PackageLoader(__package__, "assets"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    with written_whole(path) as partial:
        partial.write_text(pages.get_template(template).render(context), encoding="utf-8", newline="\n")


def _hash(text: str) -> str:
    """An inline script or style as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _navigation(study: Study, maps: dict[str, str], explored: bool) -> dict[str, list[tuple[str, str]]]:
    """Group -> (text, address), the same on every page; the group without a name is the first page's sections."""
    sections = {"Results": "results", "Space": "space", "Adaptation": "adaptation", "Data": "catalogues"}
    sections |= {"Notebooks": "notebooks", "How it was made": "how"}
    first = [(text, f"index.html#{anchor}") for text, anchor in sections.items() if explored or anchor != "space"]
    groups = {
        "": [(study.study, "index.html"), *first],
        "Classes:": [(name, f"classes-{name}.html") for name in study.datasets],
        "Maps:": list(maps.items()),
    }
    return {group: links for group, links in groups.items() if links}


def _classes_page(
    catalogue: Catalogue, results: pd.DataFrame, out: Path, baseline: str = "origin"
) -> dict[str, object]:
    """What classes.html shows of one dataset: a table for the smallest fraction, and all of it for the script."""
    from markupsafe import Markup

    results = results[results["dataset"] == catalogue.name]
    predictions = read_predictions(out, results)
    changed = gained_and_lost(predictions, baseline)
    table = _with_counts(per_class(predictions, class_sizes([catalogue]), baseline), changed)
    fractions, methods, compared = sorted(results["fraction"].unique()), *_order(results, baseline)

    first = table[(table["fraction"] == fractions[0]) & (table["method"] == [*compared, baseline][0])]
    first = first.sort_values(["net", "difference", "test", "label"], ascending=[False, False, False, True])
    labels, f1 = first["label"].tolist(), table.set_index(["fraction", "method", "label"])["f1"]
    rows = [row | {"scores": [f1[fractions[0], m, row["label"]] for m in methods]} for row in first.to_dict("records")]
    by = ["fraction", "method"]
    rows_of, changed_of = dict(list(table.groupby(by))), dict(list(changed.groupby(by)))
    captions = [
        [classes_caption(rows_of[f, m], changed_of.get((f, m), changed[:0]), baseline) for m in compared]
        for f in fractions
    ]
    page = {
        "fractions": [f"{100 * f:g}%" for f in fractions],
        "methods": [metrics.method_name(m) for m in methods],
        "captions": captions,
    }
    names = sorted({*labels, *predictions["predicted"]})
    shown = _examples(changed)
    products = catalogue.products.set_index("id").loc[shown["id"].unique()]
    cells = _cells(table, mistaken(predictions), shown, names)
    pictures = _thumbnails(catalogue, products["image_row"].to_numpy())
    data = page | {
        "compared": [methods.index(m) for m in compared],
        "baseline": methods.index(baseline),
        "names": names,
        "products": [{"title": t, "picture": p} for t, p in zip(products["title"], pictures, strict=True)],
        "cells": [[[cells[f, m, label] for label in labels] for m in methods] for f in fractions],
        **{column: first[column].tolist() for column in ("label", "part", "train", "test")},
    }
    return page | {
        "dataset": catalogue.name,
        "caption": captions[0][0] if compared else [],
        "baseline": metrics.method_name(baseline),
        "compared": [metrics.method_name(m) for m in compared],
        "rows": rows,
        "examples": {"each": EXAMPLES, "shown": len(products), "changed": changed["id"].nunique()},
        "data": Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")),
    }


def _with_counts(table: pd.DataFrame, changed: pd.DataFrame) -> pd.DataFrame:
    """``per_class`` with the number of Test items gained and lost, and net, their difference."""
    keys = ["fraction", "method", "label"]
    counts = changed.groupby([*keys, "change"]).size().unstack(fill_value=0)
    counts = counts.reindex(pd.MultiIndex.from_frame(table[keys]), columns=["gained", "lost"], fill_value=0)
    gained, lost = counts.to_numpy().T
    return table.assign(gained=gained, lost=lost, net=gained - lost)


def _order(results: pd.DataFrame, baseline: str) -> tuple[list[str], list[str]]:
    """All methods, the baseline first; and the others, those that adapt first, by accuracy at the fewest labels."""
    few = results[results["fraction"] == results["fraction"].min()]
    mean = few[few["method"] != baseline].groupby("method", sort=False)["accuracy"].mean()
    compared = sorted(mean.index, key=lambda m: (not (m in METHODS and METHODS[m].adapts), -mean[m]))
    return [baseline, *mean.index], compared


def _cells(
    table: pd.DataFrame, wrong: pd.DataFrame, shown: pd.DataFrame, names: Sequence[str]
) -> dict[tuple[float, str, str], list[object]]:
    """(fraction, method, label) -> scores in thousandths, counts, and three lists, in the order of classes.js.

    The lists hold pairs: of a wrong name and its share in per cent; of a gained, and of a lost product (its position
    among those shown) and the name it was given instead. Names are positions in ``names``.
    """
    position = {name: i for i, name in enumerate(names)}
    product = {key: i for i, key in enumerate(shown["id"].unique())}
    scores = ["f1", "precision", "recall", "difference", "low", "high"]
    numbers = table[scores].mul(1000).round().astype(int).assign(gained=table["gained"], lost=table["lost"])
    keys = table[["fraction", "method", "label"]].itertuples(index=False, name=None)
    cells = {key: [*row, [], [], []] for key, row in zip(keys, numbers.to_numpy().tolist(), strict=True)}
    for row in wrong.itertuples():
        cells[row.fraction, row.method, row.label][-3].append((position[row.predicted], round(100 * row.share)))
    for row in shown.itertuples():
        lists = cells[row.fraction, row.method, row.label]
        lists[-2 if row.change == "gained" else -1].append((product[row.id], position[row.instead]))
    return cells


def _examples(changed: pd.DataFrame, each: int = EXAMPLES, most: int = PRODUCTS) -> pd.DataFrame:
    """Up to ``each`` rows per fraction, method, class and change, of at most ``most`` different products.

    First come products on which most seeds differ, then those that changed at most fractions and methods, so that
    one picture serves often. Where products are too many, every class keeps its first before any shows its second.
    """
    often = changed.groupby(["id", "change"])["method"].transform("size")
    order = changed.assign(often=often, margin=changed["margin"].abs())
    order = order.sort_values(["margin", "often", "id"], ascending=[False, False, True])
    order["rank"] = order.groupby(["fraction", "method", "label", "change"]).cumcount()
    order = order[order["rank"] < each].sort_values(["rank", "fraction"], kind="stable")
    return order[order["id"].isin(order["id"].unique()[:most])]


def _thumbnails(catalogue: Catalogue, image_rows: np.ndarray) -> list[str | None]:
    """Pictures as base64 of WebP, about half of JPEG's size so small; None for a product without one."""
    pictures: list[str | None] = []
    for row in image_rows:
        if row < 0 or catalogue.images is None:
            pictures.append(None)
            continue
        file = io.BytesIO()
        picture = Image.fromarray(catalogue.images[[row]][0])
        picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "WEBP", quality=70)
        pictures.append(base64.b64encode(file.getvalue()).decode())
    return pictures


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise RunError(f"{path}: not there yet; run `make study` first (or the notebook that writes it)")
    return pd.read_csv(path)


def _table(frame: pd.DataFrame, heads: int = 1) -> dict[str, object]:
    """A table's texts; its first ``heads`` columns name the row."""
    columns = [{"ssl": "SSL"}.get(name, name.capitalize()) for name in frame]
    rows = [
        ["–" if pd.isna(x) else f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in frame.values
    ]
    return {"columns": columns, "rows": rows, "heads": heads}


def _picture(path: Path, title: str, caption: str) -> dict[str, str]:
    """A saved SVG or PNG as a data address, with its title and caption."""
    if not path.is_file():
        raise RunError(f"{path}: not there yet; run `make study` first (or the notebook that writes it)")
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    return {"data": f"data:image/{kind};base64,{data}", "title": title, "caption": caption}


def _if_drawn(path: Path, kind: str, title: str) -> list[dict[str, object]]:
    """A picture that the exploring notebook may have left, with its caption from the .csv beside it.

    Args:
        kind: what ``figures.caption`` calls it.
    """
    if not path.is_file():
        return []
    csv = path.with_suffix(".csv")
    if not csv.is_file():
        raise RunError(f"{csv}: not there, but {path.name} is; run the notebook that writes both")
    frame = pd.read_csv(csv, keep_default_na=False, na_values={"similarity": [""]})  # a label may be "None"
    return [_picture(path, title, figures.caption(kind, frame))]


def _explored(study: Study, out: Path, maps: dict[str, str]) -> list[dict[str, object]]:
    """Per dataset the map and the neighbours, and the interactive map; datasets without any are left out."""
    found = []
    for name in study.datasets:
        stem = out / "figures" / name
        drawn = _if_drawn(stem.with_name(f"{name}_maps.png"), "maps", f"Maps of {name}")
        pictures = [picture | {"link": maps.get(name)} for picture in drawn]
        pictures += _if_drawn(stem.with_name(f"{name}_neighbours.png"), "neighbour_pictures", f"Neighbours in {name}")
        if pictures or name in maps:
            found.append({"name": name, "pictures": pictures, "map": maps.get(name)})
    return found


def _measured(study: Study, out: Path) -> list[dict[str, object]]:
    """Measures of the space, with what each of them is, and cross-modal recall: means over seeds, drawn here from what
    the exploring notebooks left, figures/<dataset>_measures.csv and <dataset>_recall.csv."""
    from icssl_lib.explore import MEASURES, over_seeds  # here, since it imports torch

    pictures = []
    for name, value, draw, title in (
        ("measures", "value", figures.measures, "Measures of the space"),
        ("recall", "recall", figures.recall, "Cross-modal recall"),
    ):
        paths = [out / "figures" / f"{dataset}_{name}.csv" for dataset in study.datasets]
        frames = [pd.read_csv(path) for path in paths if path.is_file()]
        if not frames:
            continue
        table = over_seeds(pd.concat(frames, ignore_index=True).drop(columns="n"), value)
        fig = draw(table)
        figures.save(fig, table, out / "figures" / name)
        plt.close(fig)
        pictures.append(_picture(out / "figures" / f"{name}.svg", title, figures.caption(name, table)))
        if name == "measures":
            pictures[-1]["terms"] = {term: text for term, text in MEASURES.items() if (table["measure"] == term).any()}
    return pictures


def _results_figures(results: pd.DataFrame, out: Path) -> list[dict[str, str]]:
    efficiency = _read_csv(out / "figures" / "label_efficiency.csv")
    captions = {
        "figure5": figures.caption("figure5", results),
        "accuracy": figures.caption("accuracy_curves", results),
        "label_efficiency": figures.caption("label_efficiency", efficiency),
    }
    found = [_picture(out / "figures" / f"{name}.svg", title, captions[name]) for name, title in FIGURES.items()]
    for name, (title, caption) in BEYOND.items():
        drawn = out / "figures" / f"{name}.svg"
        if drawn.is_file():
            found.append(_picture(drawn, title, figures.caption(caption, _read_csv(drawn.with_suffix(".csv")))))
    return found


def _tails(catalogues: Sequence[Catalogue], out: Path) -> list[dict[str, str]]:
    return [
        _picture(
            out / "figures" / f"{c.name}_class_sizes.svg",
            f"Figure 4. The long tail of {c.name}",
            figures.caption("class_sizes", class_sizes([c])),
        )
        for c in catalogues
    ]


def _space_figures(study: Study, out: Path) -> list[dict[str, str]]:
    """Loss curves, alignment and uniformity of all adapted encoders, drawn from the files beside them."""
    titles = {
        "loss_curves": ("history.csv", "Loss of adaptation"),
        "space": ("space.csv", "The space, before and after"),
    }
    pictures = []
    for name, (file, title) in titles.items():
        frames = []
        for dataset in study.datasets:
            for method in study.methods:
                for seed in study.seeds:
                    path = piece(out, "encoders", dataset, method, seed) / file
                    if path.is_file():
                        frames.append(pd.read_csv(path).assign(dataset=dataset, method=method, seed=seed))
        if not frames:
            continue
        frame = pd.concat(frames, ignore_index=True)
        if name == "loss_curves":
            frame = figures.smooth(frame)
            fig = figures.loss_curves(frame, points=None)
        else:
            fig = figures.space(frame)
        figures.save(fig, frame, out / "figures" / name)
        plt.close(fig)
        pictures.append(_picture(out / "figures" / f"{name}.svg", title, figures.caption(name, frame)))
    return pictures


def _machines(study: Study, out: Path) -> list[dict[str, object]]:
    """The different machines and software versions in the records, with the number of runs on each."""
    counted: dict[str, int] = {}
    for dataset in study.datasets:
        for method in study.methods:
            for seed in study.seeds:
                path = piece(out, "records", dataset, method, seed).with_suffix(".json")
                if path.is_file():
                    machine = json.dumps(json.loads(path.read_text(encoding="utf-8")).get("machine", {}))
                    counted[machine] = counted.get(machine, 0) + 1
    return [{"runs": n} | json.loads(machine) for machine, n in counted.items()]


def _notebooks(out: Path) -> dict[str, list[tuple[str, str]]]:
    """Convert the executed notebooks to HTML beside them; kind (01_catalogue, ...) -> (name, link from the page)."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", require_js_url="", jquery_url="", mermaid_js_url="")
    links: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        if path.name.endswith(".failed.ipynb"):
            continue
        target = path.with_suffix(".html")
        if not target.exists() or target.stat().st_mtime < path.stat().st_mtime:
            body, _ = exporter.from_notebook_node(nbformat.read(path, 4), {"metadata": {"name": path.stem}})
            with written_whole(target) as partial:
                partial.write_text(body, encoding="utf-8")
        kind, _, rest = path.stem.partition("-")
        links.setdefault(kind, []).append((rest or kind, f"../notebooks/{target.name}"))
    return links
