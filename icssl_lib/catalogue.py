"""The product table of one dataset: ingest with a report, grouped split, nested subsets, head and tail.

Every random choice here orders keys by a seeded SHA-256, so that it is the same on every platform and with
every version of NumPy, and does not depend on the order of the rows.
"""

import hashlib
import json
import math
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from icssl_lib.config import SourceConfig
from icssl_lib.images import ImageStore, write_store, written_whole

PARTS = {"ssl": 50, "train": 30, "dev": 10, "test": 10}  # per cent of the products
REPORT_COLUMNS = ["reason", "action", "count", "example"]


class CatalogueError(ValueError):
    """A catalogue that cannot be used; the message names the file, what is wrong and what to do."""


class Report:
    """What ingest dropped, kept in spite of a flaw, or repaired: each reason counted, with one example."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[Any]] = {}

    def add(self, reason: str, action: str, count: int, example: object = "") -> None:
        """Count ``count`` (>= 1) more; ``action`` is dropped, kept or repaired. The first example stays."""
        self._rows.setdefault((reason, action), [0, str(example)[:120]])[0] += count

    def frame(self) -> pd.DataFrame:
        """Columns reason, action, count, example, in the order of the first occurrence."""
        return pd.DataFrame([[*key, *row] for key, row in self._rows.items()], columns=REPORT_COLUMNS)

    def __str__(self) -> str:
        return (
            "; ".join(
                f"{count} {action}: {reason} (e.g. {example})"
                for reason, action, count, example in self.frame().itertuples(index=False)
            )
            or "nothing dropped"
        )


@dataclass
class RawCatalogue:
    """What a source delivers, before cleaning.

    Attributes:
        table: columns id, title, label (str) and image (whatever ``read_image`` understands; equal str are
            the same picture, decoded once).
        read_image: reference to encoded bytes or a picture, called from several threads; raises ImageError.
            None: a catalogue without pictures.
        report: rows the source could not read.
    """

    table: pd.DataFrame
    read_image: Callable[[Any], bytes | Image.Image] | None
    report: Report = field(default_factory=Report)


@dataclass
class Catalogue:
    """One ingested dataset.

    Attributes:
        products: columns id, title, label ("": none, in the SSL part alone), image_row (row in ``images``, -1: no
            picture; products that name the same picture share a row) and part (ssl, train, dev, test), sorted by id.
        images: the decoded pictures, or None where the catalogue has none.
        report: columns reason, action, count, example.
        split_hash: 16 hexadecimal digits, see ``split_hash``.
        folder: where it is stored.
        handed: how often `part` was asked for each part; the records say how often Test was.
    """

    name: str
    products: pd.DataFrame
    images: ImageStore | None
    report: pd.DataFrame
    split_hash: str
    folder: Path
    handed: Counter[str] = field(default_factory=Counter, repr=False, compare=False)

    def part(self, part: str) -> pd.DataFrame:
        """The products of one part, renumbered from 0."""
        if part not in PARTS:
            raise ValueError(f"part {part!r}: one of {', '.join(PARTS)}")
        self.handed[part] += 1
        return self.products[self.products["part"] == part].reset_index(drop=True)

    @cached_property
    def label_counts(self) -> pd.Series:
        """Label to its number of instances in Train, descending, ties by name."""
        return _descending(self.part("train")["label"].value_counts())

    @property
    def labels(self) -> list[str]:
        """The classifier's outputs: the sorted labels of Train (those of the SSL part are never read)."""
        return sorted(self.label_counts.index)


def normalise_title(title: str) -> str:
    """Two titles that differ in case, width, punctuation or spacing alone are the same title."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", title).casefold())
    return " ".join(folded.translate(_SPACES).split())


class _Spaces(dict[int, str]):
    """For `str.translate`: punctuation and control characters to spaces; each character is looked up once."""

    def __missing__(self, code: int) -> str:
        self[code] = " " if unicodedata.category(chr(code))[0] in "PC" else chr(code)
        return self[code]


_SPACES = _Spaces()


def split(products: pd.DataFrame, seed: int) -> pd.Series:
    """Give each product its part, 50/30/10/10 per cent, products with the same normalised title together.

    The titles come in a seeded order; each goes, with all its products, to the part that lacks most. So no
    part exceeds its share by more than the products of the most frequent title.

    A product without a label is of the SSL part and counts towards its half, so that the fewer have labels, the more
    of those are in the other parts, at 30:10:10 among these. Only where its title is also a labelled product's it is
    of that one's part.

    Args:
        products: column title; column label, "" for none; without the column all count as labelled.

    Returns:
        The part of each row, on the index of ``products``; independent of the order of the rows.

    Raises:
        CatalogueError: too few different titles for four non-empty parts.
    """
    groups = products["title"].map(normalise_title)
    labelled = products["label"] != "" if "label" in products else np.ones(len(products), bool)
    sizes = groups[labelled].value_counts().to_dict()
    n, bare = sum(sizes.values()), int((~groups.isin(sizes)).sum())
    # In hundredths of products, and these times the others' hundredths, so that all are whole numbers.
    adapting = max(0, PARTS["ssl"] * (n + bare) - 100 * bare)
    others = sum(PARTS.values()) - PARTS["ssl"]
    lack = {part: share * (100 * n - adapting) for part, share in reversed(PARTS.items())}
    lack["ssl"] = others * adapting
    part_of = {}
    for group in _shuffled(sizes, seed, "split"):
        part_of[group] = max(lack, key=lack.__getitem__)  # ties: the smaller part, so that tiny ones fill too
        lack[part_of[group]] -= 100 * others * sizes[group]
    if {*part_of.values(), *(["ssl"] if bare else [])} != set(PARTS):
        raise CatalogueError(
            f"{n} {'labelled ' if bare else ''}products with {len(sizes)} different titles are too few to split into "
            f"{', '.join(PARTS)}: no part may be empty; add products (20 different titles are enough)"
        )
    return groups.map(part_of).fillna("ssl").rename("part")


def split_hash(products: pd.DataFrame) -> str:
    """Identify a split: 16 hexadecimal digits of the SHA-256 of the sorted ``id<TAB>part`` lines."""
    lines = sorted(products["id"] + "\t" + products["part"])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def train_subset(train: pd.DataFrame, fraction: float, seed: int) -> pd.DataFrame:
    """The first ceil(fraction * n) products, at least 1, of a seeded order: smaller subsets are its prefixes.

    Args:
        train: column id, unique.
        fraction: in (0, 1].

    Returns:
        The chosen rows in that order, renumbered from 0; independent of the order of ``train``.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}: expected a number in (0, 1]")
    keep = max(1, math.ceil(round(fraction * len(train), 6)))  # rounded: 0.55 * 100 is 55.00000000000001
    rank = {key: i for i, key in enumerate(_shuffled(train["id"], seed, "subset"))}
    return train.iloc[np.argsort(train["id"].map(rank).to_numpy())[:keep]].reset_index(drop=True)


def head_tail(counts: pd.Series, share: float = 0.8) -> tuple[list[str], list[str]]:
    """Split labels into the smallest head that holds at least ``share`` of the instances, and the tail.

    Args:
        counts: label to its number of instances in Train; give labels absent from Train as 0 (they are tail).
        share: in (0, 1].

    Returns:
        Head and tail labels, each by descending count, ties by name.
    """
    counts = _descending(counts)
    held = np.concatenate([[0], np.cumsum(counts.to_numpy())])
    size = int(np.argmax(held >= share * held[-1] - 1e-6))  # a slack, since 0.55 * 100 is 55.00000000000001
    return list(counts.index[:size]), list(counts.index[size:])


def _descending(counts: pd.Series) -> pd.Series:
    return counts.sort_index().sort_values(ascending=False, kind="stable")


def _shuffled(keys: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Distinct keys in a seeded order; ``purpose`` keeps two orders of the same keys independent."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{purpose}\t{seed}\t{key}".encode()).digest())


def ingest(
    name: str, source: SourceConfig, image_size: int, split_seed: int, folder: Path, progress: bool = True
) -> Catalogue:
    """Load, clean, split and store a catalogue: products.parquet, images.npy, report.csv, catalogue.json.

    catalogue.json is written last; a folder without it is incomplete, and the same call goes on with its pictures
    where the earlier one was killed.

    Args:
        image_size: side of the stored square pictures, in pixels.
        folder: made where absent; an earlier catalogue in it is replaced.
        progress: show a bar with the time left while pictures are decoded.

    Raises:
        CatalogueError: the source cannot be read, nothing is left of it, it cannot be split or stored.
    """
    from icssl_lib.sources import load  # here, since sources import this module

    raw = load(name, source)
    report = raw.report
    products = _clean(raw.table, report, getattr(source, "unlabelled", "drop"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "catalogue.json").unlink(missing_ok=True)
        products = _store_images(products, raw, source, image_size, folder, report, progress)
        products = _check_classes(products, getattr(source, "min_class_size", 1), report)
        if products.empty:
            raise CatalogueError(f"dataset {name}: no product is left of {len(raw.table)} rows: {report}")
        labels = sorted(set(products["label"]) - {""})
        if len(labels) < 2:
            what = f"bear one label, {labels[0]!r}" if labels else "are without a label"
            raise CatalogueError(
                f"dataset {name}: all {len(products)} products {what}; there is nothing to categorize ({report})"
            )
        try:
            products["part"] = split(products, split_seed)
        except CatalogueError as error:
            raise CatalogueError(f"dataset {name}: {error} ({report})") from None
        astray = (products["label"] == "") & (products["part"] != "ssl")
        _note(report, "empty label, and the title of a product of another part", "dropped", products[astray])
        products = products[~astray].reset_index(drop=True)
        _save(name, products, report.frame(), image_size, split_seed, folder)
        (folder / "images.npy.journal").unlink(missing_ok=True)
    except OSError as error:
        raise CatalogueError(
            f"{folder}: cannot store the catalogue: {error.strerror or error}; mended, the same command goes on"
        ) from error
    return open_catalogue(folder)


def open_catalogue(folder: Path) -> Catalogue:
    """Open what ``ingest`` stored.

    Raises:
        CatalogueError: absent, incomplete or damaged.
    """
    folder = Path(folder)
    remedy = "run notebook 01_catalogue, or `make study`, to make it"
    try:
        meta = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        products = pd.read_parquet(folder / "products.parquet")
        images = ImageStore(folder / "images.npy") if meta["pictures"] else None
        report = pd.read_csv(folder / "report.csv", keep_default_na=False)
    except FileNotFoundError as error:
        raise CatalogueError(
            f"{folder}: no complete catalogue ({error.filename or error} is absent); {remedy}"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise CatalogueError(f"{folder}: the catalogue is damaged ({error}); {remedy} again") from None
    if split_hash(products) != meta["split_hash"] or len(images or ()) != meta["pictures"]:
        raise CatalogueError(f"{folder}: products, pictures and catalogue.json do not match; {remedy} again")
    return Catalogue(meta["name"], products, images, report, meta["split_hash"], folder)


# Control characters, lone surrogates, and the invisible and direction marks that garble a page
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")


def _note(report: Report, reason: str, action: str, rows: pd.DataFrame) -> None:
    """Count products in the report, the first one as the example."""
    if len(rows):
        report.add(reason, action, len(rows), f"{rows['id'].iloc[0]}: {rows['title'].iloc[0]}")


def _clean(table: pd.DataFrame, report: Report, unlabelled: str) -> pd.DataFrame:
    """Repair texts, drop rows without id or title and repeated ids (the first stays), sort by id.

    unlabelled: "drop" drops rows without a label too, "ssl" keeps them for adaptation.
    """
    products = table[["id", "title", "label", "image"]].astype(object)
    unprintable = [bool(_UNPRINTABLE.search(title)) for title in products["title"]]
    for column in ("id", "title", "label"):
        products[column] = [" ".join(_UNPRINTABLE.sub(" ", text).split()) for text in products[column]]
    products["unprintable"] = unprintable
    for column in ("id", "title", "label"):
        empty, kept = products[column] == "", column == "label" and unlabelled == "ssl"
        _note(report, f"empty {column}", "kept" if kept else "dropped", products[empty])
        products = products if kept else products[~empty]
    repeated = products["id"].duplicated()
    _note(report, "duplicated id", "dropped", products[repeated])
    products = products[~repeated].sort_values("id", ignore_index=True)
    _note(report, "control characters in title", "repaired", products[products["unprintable"]])
    return products.drop(columns="unprintable")


def _store_images(
    products: pd.DataFrame,
    raw: RawCatalogue,
    source: SourceConfig,
    size: int,
    folder: Path,
    report: Report,
    progress: bool,
) -> pd.DataFrame:
    """Decode the pictures into images.npy and give each product its row; drop or keep those without one."""
    store, earlier = folder / "images.npy", list(folder.glob("images.npy*"))
    references = products.pop("image")
    products["image_row"] = -1
    if raw.read_image is None or products.empty:
        for path in earlier:
            path.unlink()
        return products
    # Products that name the same picture file share its row; anything but a path counts as different.
    keys = [ref if isinstance(ref, str) else position for position, ref in enumerate(references)]
    which = dict(zip(keys, references, strict=True))
    free, needed = shutil.disk_usage(folder).free, len(which) * 3 * size * size
    free += sum(path.stat().st_size for path in earlier)  # gone on with, or replaced
    if needed > free:
        raise CatalogueError(
            f"{folder}: {len(which)} pictures of {size} x {size} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB "
            "are free; free some, use another disk, or a smaller vision.image_size"
        )
    identity = source.model_dump_json()
    rows, errors = write_store(store, list(which.values()), raw.read_image, size, progress, identity)
    position = {key: i for i, key in enumerate(which)}
    index = np.array([position[key] for key in keys])
    products["image_row"] = rows[index]
    missing = getattr(source, "missing_image", "drop")
    action = "dropped" if missing == "drop" else "kept"
    for product, i in zip(products["id"], index, strict=True):
        if i in errors:
            report.add(f"picture {errors[i].reason}", action, 1, f"{product}: {errors[i]}")
    if len(errors) == len(which):
        store.unlink()
    return products if missing == "keep" else products[products["image_row"] >= 0].reset_index(drop=True)


def _check_classes(products: pd.DataFrame, min_size: int, report: Report) -> pd.DataFrame:
    """Drop classes smaller than ``min_size``, count those of one product. Products without a label are of none."""
    sizes = products["label"].map(products["label"].value_counts()).where(products["label"] != "", min_size + 1)
    _note(report, f"class of fewer than {min_size} products", "dropped", products[sizes < min_size])
    _note(report, "only product of its class", "kept", products[(sizes == 1) & (sizes >= min_size)])
    return products[sizes >= min_size].reset_index(drop=True)


def _save(
    name: str, products: pd.DataFrame, report: pd.DataFrame, image_size: int, split_seed: int, folder: Path
) -> None:
    store = folder / "images.npy"
    meta = {
        "name": name,
        "split_hash": split_hash(products),
        "split_seed": split_seed,
        "image_size": image_size,
        "products": len(products),
        "pictures": len(ImageStore(store)) if store.exists() else 0,
        "classes": len(set(products["label"]) - {""}),
        "parts": {part: int((products["part"] == part).sum()) for part in PARTS},
    }
    with written_whole(folder / "products.parquet") as path:
        products.to_parquet(path, index=False)
    with written_whole(folder / "report.csv") as path:
        report.to_csv(path, index=False)
    with written_whole(folder / "catalogue.json") as path:
        path.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
