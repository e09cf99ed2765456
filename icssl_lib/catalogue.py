"""A product catalogue of one dataset: ingest with a report, grouped split, nested subsets, head and tail."""

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd

from icssl_lib.config import SourceConfig
from icssl_lib.files import damaged, seal, verify, written_whole
from icssl_lib.images import write_store
from icssl_lib.sources.raw import CatalogueError, RawCatalogue, Report, unescaped

PARTS = {"ssl": 50, "train": 30, "dev": 10, "test": 10}  # per cent of the products


@dataclass
class Catalogue:
    """One ingested dataset. products: columns id, title, label ("": none, in the SSL part alone), image_row (row in
    ``images``, -1: no picture; the same for the same picture) and part (ssl, train, dev, test), sorted by id."""

    name: str
    products: pd.DataFrame
    images: np.ndarray | None  # (rows, S, S, 3) uint8, mapped; None: a catalogue without pictures
    report: pd.DataFrame  # reason, action, count, example
    split_hash: str
    folder: Path
    memory: dict = field(default_factory=dict, repr=False, compare=False)  # what one job computes once
    handed: Counter[str] = field(default_factory=Counter, repr=False, compare=False)  # how often each part was

    def part(self, part: str) -> pd.DataFrame:
        """The products of one part, renumbered from 0."""
        if part not in PARTS:
            raise ValueError(f"part {part!r}: one of {', '.join(PARTS)}")
        self.handed[part] += 1
        return self.products[self.products["part"] == part].reset_index(drop=True)

    def checked_images(self) -> np.ndarray:
        """``images``, compared with their checksum once. Raises: CatalogueError: not as they were written."""
        if "images" not in self.memory and (path := damaged(self.folder, "images.npy")):
            raise CatalogueError(f"{path} is not as it was written; delete its folder, then `make study`")
        return self.memory.setdefault("images", self.images)

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
    spaced = (" " if unicodedata.category(c)[0] in "PC" else c for c in folded)  # punctuation and control characters
    return " ".join("".join(spaced).split())


def split(products: pd.DataFrame, seed: int) -> pd.Series:
    """Give each product its part, 50/30/10/10 per cent, products with the same normalised title together.

    The titles come in a seeded order; each goes, with all its products, to the part that lacks most. So no part
    exceeds its share by more than the products of the most frequent title. A product without a label ("") is of the
    SSL part and counts towards its half, unless a labelled product has its title: then it is of that one's part.

    Raises: CatalogueError: too few different titles for four non-empty parts."""
    groups = products["title"].map(normalise_title)
    sizes = groups[products["label"] != ""].value_counts().to_dict()
    n, bare = sum(sizes.values()), int((~groups.isin(sizes)).sum())
    adapting = max(0, n - bare)  # twice the labelled products of the SSL part: with the bare ones they are half of all
    lack = {part: share * (2 * n - adapting) for part, share in reversed(PARTS.items())}  # in hundredths of products
    lack["ssl"] = PARTS["ssl"] * adapting
    part_of = {}
    for group in _shuffled(sizes, seed, "split"):
        part_of[group] = max(lack, key=lack.__getitem__)  # ties: the smaller part, so that tiny ones fill too
        lack[part_of[group]] -= 100 * sizes[group]
    if {*part_of.values(), *(["ssl"] if bare else [])} != set(PARTS):
        few = f"{n} labelled products with {len(sizes)} different titles are too few to split"
        raise CatalogueError(f"{few}: no part may be empty; add products (20 different titles are enough)")
    return groups.map(part_of).fillna("ssl").rename("part")


def masked(products: pd.DataFrame, class_words: Iterable[str], share: float) -> pd.Series:
    """Titles without a ``share`` of their class words: words that stand in ``class_words``, whatever their case and
    with or without a plural's s. What is masked at one share is masked at every larger one. A title that loses all of
    its words is "-"; parts are as they were, since they are given by the whole titles."""

    def stems(text: str) -> set[str]:
        return {word.removesuffix("s") for word in normalise_title(text).split()}

    def mask(product: str, title: str) -> str:
        draws = np.random.default_rng(list(f"mask\t{product}".encode())).random(title.count(" ") + 1)
        kept = [word for word, x in zip(title.split(), draws, strict=True) if x >= share or not stems(word) <= known]
        return " ".join(kept) or "-"

    known = set().union(*map(stems, class_words))
    return pd.Series(map(mask, products["id"], products["title"]), products.index)


def split_hash(products: pd.DataFrame) -> str:
    """Identify a split: 16 hexadecimal digits of the SHA-256 of the sorted ``id<TAB>part`` lines."""
    lines = sorted(products["id"] + "\t" + products["part"])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def train_subset(train: pd.DataFrame, fraction: float, seed: int) -> pd.DataFrame:
    """The first ceil(fraction * n) products, at least 1, of a seeded order by id: smaller subsets are its prefixes."""
    keep = max(1, math.ceil(round(fraction * len(train), 6)))  # rounded: 0.55 * 100 is 55.00000000000001
    rank = {key: i for i, key in enumerate(_shuffled(train["id"], seed, "subset"))}
    return train.iloc[np.argsort(train["id"].map(rank).to_numpy())[:keep]].reset_index(drop=True)


def head_tail(counts: pd.Series, share: float = 0.8) -> tuple[list[str], list[str]]:
    """The labels of the smallest head that holds at least ``share`` of the instances, and of the tail, each by
    descending count, ties by name. counts: label to its number in Train, 0 for those absent from it (they are tail)."""
    counts = _descending(counts)
    held = np.concatenate([[0], np.cumsum(counts.to_numpy())])
    size = int(np.argmax(held >= share * held[-1] - 1e-6))  # a slack, since 0.55 * 100 is 55.00000000000001
    return list(counts.index[:size]), list(counts.index[size:])


def _descending(counts: pd.Series) -> pd.Series:
    return counts.sort_index().sort_values(ascending=False, kind="stable")


def _shuffled(keys: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Distinct keys by their seeded SHA-256: in one order on every platform, whatever the order in which they come.
    ``purpose`` keeps two orders of the same keys independent."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{purpose}\t{seed}\t{key}".encode()).digest())


def load(name: str, source: SourceConfig) -> RawCatalogue:
    """What the module of ``sources`` that bears the source's name delivers. Raises: CatalogueError."""
    return import_module(f"icssl_lib.sources.{source.source}").load(name, source)


def ingest(name: str, source: SourceConfig, image_size: int, split_seed: int, folder: Path, progress=True) -> Catalogue:
    """Load, clean, split and store a catalogue in ``folder``, in the place of an earlier or incomplete one.
    image_size: side of the stored square pictures, in pixels.
    Raises: CatalogueError: the source cannot be read, nothing is left of it, it cannot be split or stored."""
    raw = load(name, source)
    products = _clean(raw, getattr(source, "unlabelled", "drop") == "ssl", getattr(source, "unescape", False))
    keep = getattr(source, "missing_image", "drop") == "keep"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / "catalogue.json", *folder.glob("images.npy*")):
            path.unlink(missing_ok=True)
        products = _decode(products, raw, keep, image_size, folder / "images.npy", progress)
        products = _with_parts(products, raw.report, getattr(source, "min_class_size", 1), split_seed)
        if source.mask_class_words:
            words = [*products["label"].unique(), *source.class_words, *raw.class_words]
            shown = masked(products, words, source.mask_class_words)
            raw.report.rows("class words in title", "masked", products[shown != products["title"]])
            products["title"] = shown
        save(name, products, raw.report.frame(), folder)
    except CatalogueError as error:
        raise CatalogueError(f"dataset {name}: {error} ({len(raw.table)} rows; {raw.report})") from None
    except OSError as error:
        raise CatalogueError(f"{folder}: cannot store the catalogue: {error.strerror or error}") from error
    return open_catalogue(folder)


def save(name: str, products: pd.DataFrame, report: pd.DataFrame, folder: Path) -> None:
    """Write products.parquet, report.csv and, last, catalogue.json beside the images.npy, if any, of ``folder``."""
    pictures = len(np.load(folder / "images.npy", "r")) if (folder / "images.npy").exists() else 0
    meta = {"name": name, "split_hash": split_hash(products), "pictures": pictures}
    products.to_parquet(folder / "products.parquet", index=False)
    report.to_csv(folder / "report.csv", index=False)
    seal(folder, "products.parquet", "report.csv", "images.npy")
    with written_whole(folder / "catalogue.json") as path:
        path.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_catalogue(folder: Path) -> Catalogue:
    """Open what `ingest` or `save` stored. Raises: CatalogueError: absent, incomplete or damaged."""
    try:
        meta = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        verify(folder, "products.parquet", "report.csv")
        products = pd.read_parquet(folder / "products.parquet")
        images = np.load(folder / "images.npy", "r") if meta["pictures"] else None
        report = pd.read_csv(folder / "report.csv", keep_default_na=False, dtype={"example": str})
        if split_hash(products) != meta["split_hash"] or (images is not None and len(images) != meta["pictures"]):
            raise ValueError("products, pictures and catalogue.json do not match")
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise CatalogueError(f"{folder}: no whole catalogue ({error}); `make study` makes it") from None
    return Catalogue(meta["name"], products, images, report, meta["split_hash"], folder)


_INVISIBLE = r"[\xad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe0e\ufe0f\ufeff\uffa0"
_INVISIBLE = re.compile(_INVISIBLE + r"\ufff9-\ufffb\U000e0000-\U000e0fff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # lone surrogates too
_REPAIRS = {
    "more than 10000 characters": lambda text: text[:10_000],  # forms of Unicode may take quadratic time
    "HTML entities": unescaped,
    "another Unicode form": lambda text: unicodedata.normalize("NFC", text),
    "zero-width characters": lambda text: _INVISIBLE.sub("", text),
    "control characters": lambda text: _CONTROL.sub(" ", text),
}
_MISSING = {"nan", "none", "null", "n/a", "n.a.", "na", "<na>", "#n/a", "-", "?", "missing"}  # what programs write


def _clean(raw: RawCatalogue, keep_unlabelled: bool, unescape: bool) -> pd.DataFrame:
    """Repair texts, drop rows without id, title or label and repeated ids (the first stays), sort by id."""
    products, texts = raw.table.astype(object), ["id", "title", "label"]

    def each(column: str, mend: Callable[[str], str]) -> pd.Series:
        return pd.Series([mend(text) for text in products[column]], products.index, dtype=object)  # surrogates too

    for column in texts:
        products[column] = each(column, str.strip)
        for what, repair in _REPAIRS.items():
            mended, left = each(column, repair), what == "HTML entities" and not unescape
            touched = products[mended != products[column]]
            raw.report.rows(f"{what} in {column}", "kept" if left else "repaired", touched, column)
            products[column] = products[column] if left else mended
        products[column] = each(column, lambda text: " ".join(text.split()))
    for column in texts:
        empty, kept = products[column] == "", column == "label" and keep_unlabelled
        raw.report.rows(f"empty {column}", "kept" if kept else "dropped", products[empty])
        products = products if kept else products[~empty]
    repeated = products["id"].duplicated()
    raw.report.rows("duplicated id", "dropped", products[repeated])
    products = products[~repeated].sort_values("id")
    missing = products[products["label"].str.lower().isin(_MISSING)]
    raw.report.rows("label that reads as if it were missing", "kept", missing, "label")
    return products.reset_index(drop=True)


def _decode(table: pd.DataFrame, raw: RawCatalogue, keep: bool, size: int, store: Path, progress: bool) -> pd.DataFrame:
    """Decode the pictures into ``store`` and give each product its row; drop or ``keep`` those without a picture."""
    references = table.pop("image")
    table["image_row"] = -1
    if raw.read_image is None or table.empty:
        return table
    # Products that name the same picture file share its row; anything but a path counts as different.
    keys = [ref if isinstance(ref, str) else position for position, ref in enumerate(references)]
    index, distinct = pd.factorize(pd.Series(keys, dtype=object))
    first = np.unique(index, return_index=True)[1]
    rows, errors = write_store(store, list(references.iloc[first]), raw.read_image, size, progress)
    table["image_row"] = rows[index]
    for product, i in zip(table["id"], index, strict=True):
        if i in errors:
            raw.report.add(f"picture {errors[i].reason}", "kept" if keep else "dropped", 1, f"{product}: {errors[i]}")
    if len(errors) == len(distinct):
        store.unlink()
    return table if keep else table[table["image_row"] >= 0].reset_index(drop=True)


def _with_parts(products: pd.DataFrame, report: Report, min_size: int, seed: int) -> pd.DataFrame:
    """Drop classes smaller than ``min_size``, and add the column part, unless the source has it. A product without a
    label is of no class; it is dropped where its title, or the source, puts it outside of the SSL part."""
    sizes = products["label"].map(products["label"].value_counts()).where(products["label"] != "", min_size + 1)
    report.rows(f"class of fewer than {min_size} products", "dropped", products[sizes < min_size])
    report.rows("only product of its class", "kept", products[(sizes == 1) & (sizes >= min_size)])
    products = products[sizes >= min_size].reset_index(drop=True)
    labels = set(products["label"]) - {""}
    if len(labels) < 2:
        left = f"{len(products)} products with {len(labels)} different labels are left"
        raise CatalogueError(f"{left}; there is nothing to categorize")
    if "part" not in products:
        products["part"] = split(products, seed)
    if (foreign := ~products["part"].isin(PARTS)).any():
        first = products[foreign].iloc[0]
        named = f"{foreign.sum()} products of another part than {', '.join(PARTS)}"
        raise CatalogueError(f"{named}, e.g. {first['id']}: {first['part']!r}")
    part = products["part"].groupby(products["title"].map(normalise_title)).transform("first")
    report.rows("title that stands in another part too", "kept", products[part != products["part"]])
    astray = (products["label"] == "") & (products["part"] != "ssl")
    report.rows("empty label, and of another part than ssl", "dropped", products[astray])
    products = products[~astray].reset_index(drop=True)
    if empty := sorted(set(PARTS) - set(products["part"])):
        raise CatalogueError(f"no product is of the part {empty[0]}; no part may be empty")
    return products
