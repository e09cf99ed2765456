"""Explore the embeddings: what adaptation changed, who a product's neighbours are, which pictures a title finds.

An `Exploration` holds products and one or more `View`s of them, each by another encoder: of a study's run (`of_study`),
or of any table and any Hugging Face encoder (`of_table`). All other functions ask it a question and return a DataFrame;
``position`` is a product's row in ``space.products``, and views go by their names. No widgets, no HTML.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import sparse, stats
from scipy.spatial import cKDTree
from torch import nn
from tqdm.auto import tqdm

from icssl_lib import losses
from icssl_lib.adapt import load_towers, make_accelerator, text_model
from icssl_lib.catalogue import head_tail, normalise_title, open_catalogue
from icssl_lib.config import Study, TextConfig, nearest
from icssl_lib.encoders import TextTower, load_text, take, tokenize
from icssl_lib.images import ImageStore, alone, fingerprint, read_bytes, write_store
from icssl_lib.methods import METHODS
from icssl_lib.runs import piece

BLOCK = 256  # rows whose similarities to all products are held at a time: 51 MB for 50,000 products

MEASURES = {
    "title alignment": "Mean squared distance, on the unit sphere, of a title's embeddings under two dropout masks "
    "(Wang & Isola, 2020). Lower is steadier: what the encoder says of a title depends less on chance; 0 is the least.",
    "title-picture alignment": "Mean squared distance of a title and its own picture in the space that both towers "
    "project to (Wang & Isola, 2020). Lower is better: a title points at its picture; orthogonal pairs have 2.",
    "uniformity": "Log of the mean Gaussian potential between two different titles on the unit sphere (Wang & Isola, "
    "2020). Lower is better: titles use the whole sphere, and differences between them are large enough to learn from.",
    "anisotropy": "Mean cosine of two different titles (Ethayarajh, 2019). Lower is better: near 1 all titles lie in a "
    "narrow cone and seem alike, at 0 they point everywhere.",
    "label agreement": "Share of a title's 10 nearest neighbours that bear its label. Higher is better: classes lie "
    "together although no label was shown, and a classifier needs fewer of them.",
    "effective rank": "Number of directions along which titles really differ: exp of the entropy of the singular "
    "values' shares (Roy & Vetterli, 2007). Higher means that more directions are in use; it cannot exceed the number "
    "of titles, so compare views, not parts of different size.",
}


class ExploreError(ValueError):
    """A question that cannot be answered; the message names what is wrong and what is known."""


@dataclass
class Shared:
    """The space that titles and pictures share after ConVIRT.

    Attributes:
        titles: (N, D) float32, projected.
        pictures: (N, D) float32, projected; NaN rows where a product has no picture.
        project: titles to (n, D).
    """

    titles: np.ndarray
    pictures: np.ndarray
    project: Callable[[list[str]], np.ndarray]


@dataclass
class View:
    """The products as one encoder sees them.

    Attributes:
        titles: (N, H) float32, pooled; equal titles have equal rows.
        embed: titles to (n, H).
        noisy: titles and a seed to (n, H), with dropout at work.
        predicted: (N,) objects, one classifier's label per product, None where it read none; None: no classifier.
        share: makes `shared`; None: no picture was shown to this encoder.
    """

    name: str
    titles: np.ndarray
    embed: Callable[[list[str]], np.ndarray]
    noisy: Callable[[list[str], int], np.ndarray]
    predicted: np.ndarray | None = None
    share: Callable[[], Shared] | None = None

    @cached_property
    def shared(self) -> Shared | None:
        """The shared space, embedded when it is first asked for.

        Raises: ModelError: the towers were not kept when this encoder was adapted.
        """
        return self.share() if self.share else None


@dataclass
class Exploration:
    """Products, and views of them.

    Attributes:
        products: columns id, title, label ("" where unknown), part ("" outside a study), size (head or tail, "" without
            labels) and image_row (row in ``images``, -1: no picture), numbered from 0.
        images: the pictures, or None.
        views: by name, in the order asked for.
        notes: what was dropped from a table and why, for people.
        cache: folder of files that save time when they are there, and may be deleted; None: nothing is kept.
    """

    name: str
    products: pd.DataFrame
    images: ImageStore | None
    views: dict[str, View]
    notes: list[str] = field(default_factory=list)
    cache: Path | None = None

    def view(self, name: str) -> View:
        """Raises: ExploreError: no such view."""
        if name not in self.views:
            raise ExploreError(f"no view '{name}'; {nearest(str(name), list(self.views))}")
        return self.views[name]

    def thumbnails(self, positions: Sequence[int] | None = None, side: int = 32) -> np.ndarray:
        """Pictures of products (all of them by default): uint8 (n, side, side, 3), white where there is none."""
        rows = self.products["image_row"].to_numpy()
        rows = rows if positions is None else rows[np.asarray(positions, dtype=int)]
        pictures = np.full((len(rows), side, side, 3), 255, dtype=np.uint8)
        for i in np.flatnonzero(rows >= 0):
            pixels = Image.fromarray(self.images[rows[i : i + 1]][0])
            pictures[i] = pixels.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return pictures


class Encoder:
    """Embeds titles: ``encoder(titles)`` is (n, H) float32, pooled; equal titles get equal rows."""

    def __init__(self, backbone: nn.Module, tokenizer: Any, text: TextConfig, name: str = "") -> None:
        self.tower = TextTower(backbone, text.pooling, projection_dim=1, depth=0)
        self.tokenizer, self.max_tokens, self.name = tokenizer, text.max_tokens, name

    def __call__(self, titles: list[str]) -> np.ndarray:
        self.tower.eval()
        return self._embed(titles)

    def noisy(self, titles: list[str], seed: int) -> np.ndarray:
        """The same with dropout at work; the random state is left as it was."""
        self.tower.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._embed(titles)

    @torch.inference_mode()
    def _embed(self, titles: list[str], batch_size: int = 256) -> np.ndarray:
        which, distinct = pd.factorize(np.asarray(titles, dtype=object))
        order = np.argsort([len(title) for title in distinct], kind="stable")  # alike lengths: little is padded
        device, parts = self.tower.backbone.device, []
        with tqdm(total=len(order), desc=f"{self.name} titles", unit="", disable=len(order) <= 4 * batch_size) as bar:
            for start in range(0, len(order), batch_size):
                batch = list(distinct[order[start : start + batch_size]])
                tokens = tokenize(self.tokenizer, batch, self.max_tokens)
                tokens = take(tokens, torch.arange(len(batch)), device)
                parts.append(self.tower.embed(**tokens).float().cpu().numpy())
                bar.update(len(batch))
        return np.concatenate(parts)[np.argsort(order)][which]

    @cached_property
    def key(self) -> bytes:
        """Differs for other weights, another tokenizer, pooling or length."""
        digest = hashlib.sha256(f"{self.tower.pooling} {self.max_tokens}".encode())
        for name, weight in self.tower.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.cpu().contiguous().numpy())
        digest.update(repr((len(self.tokenizer), self.tokenizer("Aa Bb-1", "ÀΩ")["input_ids"])).encode())
        return digest.digest()


# --- where an exploration comes from


def of_study(
    study: Study,
    out: Path,
    dataset: str,
    views: Sequence[tuple[str, int]],
    part: str | None = None,
    most: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Exploration:
    """Products of a dataset, embedded by the run's encoders.

    On a CPU with the study's ``runtime.threads``, so that numbers do not depend on the machine's cores.

    Args:
        out: the run folder; embeddings are kept in its folder ``explore``, by weights and titles.
        views: (method, seed); named "convirt seed 0". ``origin`` has one encoder and is named "origin"; its seed is
            that of the classifier.
        part: ssl, train, dev or test; None: all.
        most: a seeded sample of so many products; None: all.
        fraction: of Train, whose classifiers' predictions (on Test) go with the views; None: the largest.

    Raises: ExploreError: unknown dataset, method or fraction, a view twice. CatalogueError, ModelError: not made yet.
    """
    out = Path(out)
    if dataset not in study.datasets:
        raise ExploreError(f"no dataset '{dataset}'; {nearest(dataset, list(study.datasets))}")
    catalogue = open_catalogue(out / "catalogues" / dataset)
    products = catalogue.products if part is None else catalogue.part(part)
    head, _ = head_tail(catalogue.label_counts)
    size = np.where(products["label"].isin(head), "head", "tail")
    products = products.assign(size=np.where(products["label"] == "", "", size))
    products = products[["id", "title", "label", "part", "size", "image_row"]]
    if most is not None and most < len(products):
        products = products.sample(most, random_state=seed).sort_index()
    space = Exploration(dataset, products.reset_index(drop=True), catalogue.images, {}, cache=out / "explore")
    for method, seed_of in views:
        view = _study_view(space, study, out, method, seed_of, fraction)
        if view.name in space.views:
            raise ExploreError(f"view '{view.name}' is asked for twice")
        space.views[view.name] = view
    return space


def view_name(method: str, seed: int) -> str:
    """How a study's view is called."""
    return f"{method} seed {seed}" if METHODS[method].adapts else method


def _study_view(space: Exploration, study: Study, out: Path, method: str, seed: int, fraction: float | None) -> View:
    if method not in METHODS:
        raise ExploreError(f"no method '{method}'; {nearest(method, list(METHODS))}")
    entry, name = METHODS[method], view_name(method, seed)
    if entry.classifier != "finetune":
        raise ExploreError(f"'{method}' has no encoder of its own, so it is no view")
    folder = piece(out, "encoders", space.name, method, seed)
    if entry.adapts and not (folder / "config.json").is_file():
        raise ExploreError(f"{folder}: no encoder of {name}; run notebook 02 for it, or `make study`")
    backbone, tokenizer = load_text(str(folder) if entry.adapts else text_model(study, out))
    encoder = Encoder(backbone.to(make_accelerator(study.runtime).device), tokenizer, study.text, name)
    predicted = _predictions(piece(out, "predictions", space.name, method, seed).with_suffix(".parquet"), fraction)
    titles = _kept(space.cache, f"{space.name}-titles", lambda: encoder(list(space.products["title"])), encoder.key,
                   *space.products["title"])  # fmt: skip
    view = View(name, titles, encoder, encoder.noisy)
    if predicted is not None:
        found = predicted.reindex(space.products["id"])
        view.predicted = found.astype(object).where(found.notna(), None).to_numpy()
    if entry.pictures != "none" and space.images is not None:
        view.share = lambda: _share(space, view, study, out, method, seed)
    return view


def _predictions(path: Path, fraction: float | None) -> pd.Series | None:
    """The predicted label by id, at one fraction of Train; None where the run holds no predictions."""
    if not path.is_file():
        return None
    table = pd.read_parquet(path, columns=["fraction", "id", "predicted"])
    fractions = sorted(table["fraction"].unique())
    fraction = fractions[-1] if fraction is None else fraction
    if fraction not in fractions:
        raise ExploreError(f"{path}: no predictions at fraction {fraction}; known: {', '.join(map(str, fractions))}")
    return table[table["fraction"] == fraction].set_index("id")["predicted"]


def _share(space: Exploration, view: View, study: Study, out: Path, method: str, seed: int) -> Shared:
    """Project titles, and embed each picture once, by the towers that adaptation left."""
    towers, _ = load_towers(study, out, space.name, method, seed)
    towers.to(make_accelerator(study.runtime).device)
    device = next(towers.parameters()).device

    @torch.inference_mode()
    def project(pooled: np.ndarray) -> np.ndarray:
        return towers.text.projection(torch.tensor(pooled, device=device)).float().cpu().numpy()

    @torch.inference_mode()
    def embed_pictures(rows: np.ndarray) -> np.ndarray:
        chunks = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        found = []
        for chunk in tqdm(chunks, desc=f"{view.name} pictures", disable=len(chunks) < 16):
            pixels = torch.tensor(space.images[chunk], device=device)
            found.append(towers.vision.projection(towers.vision.embed(pixels)).float().cpu().numpy())
        return np.concatenate(found)

    image_row = space.products["image_row"].to_numpy()
    rows, which = np.unique(image_row[image_row >= 0], return_inverse=True)
    pictures = np.full((len(image_row), study.adapt.projection_dim), np.nan, dtype=np.float32)
    if len(rows):
        weights = (piece(out, "encoders", space.name, method, seed) / "towers.safetensors").read_bytes()
        store = space.images.path.stat()
        key = (weights, f"{store.st_size} {store.st_mtime_ns}".encode(), rows.tobytes())
        pictures[image_row >= 0] = _kept(
            space.cache, f"{space.name}-pictures", lambda: embed_pictures(rows), *key
        )[which]  # fmt: skip
    return Shared(project(view.titles), pictures, lambda titles: project(view.embed(titles)))


def of_table(
    table: pd.DataFrame,
    encoders: str | dict[str, str],
    *,
    name: str = "catalogue",
    title: str = "title",
    label: str = "label",
    image: str = "image",
    id: str = "id",
    image_folder: Path | str = ".",
    image_size: int = 64,
    pooling: str = "mean",
    max_tokens: int = 32,
    cache: Path | str | None = None,
) -> Exploration:
    """Any catalogue and any encoder: nothing of a study is needed.

    Args:
        table: one row per product. Rows without a title are dropped and counted in ``notes``; pictures that cannot be
            read are counted, and their products kept.
        encoders: a Hugging Face folder or hub name, or several by the names that the views shall have.
        title, label, image, id: columns. All but the title may be absent; a name that is not the default must be there.
            Pictures are paths, below ``image_folder`` where relative, or encoded bytes.
        image_size: side of the stored pictures, in pixels.
        pooling, max_tokens: as the encoders were trained; see ``config.TextConfig``.
        cache: folder for embeddings and pictures; None: they are made anew each time.

    Raises: ExploreError: no such column (with the nearest name), no title left, no encoder. ModelError: it cannot be
        loaded.
    """
    encoders = {"encoder": encoders} if isinstance(encoders, str) else dict(encoders)
    if not encoders:
        raise ExploreError("no encoder is named")
    columns = {"id": id, "title": title, "label": label, "image": image}
    for role, column in columns.items():
        if column not in table and (role == "title" or column != role):
            raise ExploreError(f"the table has no column '{column}' ({role}); {nearest(column, list(map(str, table)))}")
    given = {role: table[column].to_numpy() for role, column in columns.items() if column in table}
    products = pd.DataFrame({"id": table.index.astype(str)} | given).reset_index(drop=True)
    for role in ("id", "title", "label"):
        products[role] = _texts(products[role]) if role in products else ""
    notes, empty = [], products["title"] == ""
    if empty.any():
        notes.append(f"{empty.sum()} of {len(products)} rows have no title and were dropped")
        products = products[~empty].reset_index(drop=True)
    if products.empty:
        raise ExploreError(f"no product has a title in column '{title}' ({len(table)} rows)")
    counts = products.loc[products["label"] != "", "label"].value_counts()
    head = head_tail(counts)[0] if len(counts) else []
    size = np.where(products["label"].isin(head), "head", "tail")
    cache = Path(cache) if cache is not None else None
    references = products["image"] if "image" in products else pd.Series([None] * len(products), dtype=object)
    rows, images = _table_pictures(references, Path(image_folder), image_size, cache, name, notes)
    products = products[["id", "title", "label"]].assign(
        part="", size=np.where(products["label"] == "", "", size), image_row=rows
    )
    space = Exploration(name, products, images, {}, notes, cache)
    text = TextConfig(pooling=pooling, max_tokens=max_tokens)
    for called, model in encoders.items():
        backbone, tokenizer = load_text(str(model))
        encoder = Encoder(backbone.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, text, called)
        titles = list(products["title"])
        embedded = _kept(cache, f"{name}-titles", lambda e=encoder, t=titles: e(t), encoder.key, *titles)
        space.views[called] = View(called, embedded, encoder, encoder.noisy)
    return space


def _texts(column: pd.Series) -> pd.Series:
    """Any values as stripped text; missing ones as ""."""
    return column.astype(object).where(column.notna(), "").astype(str).str.split().str.join(" ")


def _table_pictures(
    references: pd.Series, folder: Path, size: int, cache: Path | None, name: str, notes: list[str]
) -> tuple[np.ndarray, ImageStore | None]:
    """Decode a table's pictures; each product's row in the store, -1 without a picture that can be read."""
    rows = np.full(len(references), -1)
    given = [ref if isinstance(ref, bytes) else str(ref) if pd.notna(ref) and str(ref) else None for ref in references]
    distinct = [ref for ref in dict.fromkeys(given) if ref is not None]
    if not distinct:
        return rows, None

    def read(reference: bytes | str) -> bytes:
        return reference if isinstance(reference, bytes) else read_bytes(folder / Path(reference).expanduser())

    where, source = cache or Path(tempfile.mkdtemp(prefix="icssl-")), str(folder.resolve())
    where.mkdir(parents=True, exist_ok=True)
    # Another table's pictures go to another file; of two notebooks the second waits.
    path = where / f"{name}-pictures-{fingerprint(distinct, size, source)[:16]}.npy"
    with alone(path.with_name(f"{path.name}.lock")):
        row_of, failed = write_store(path, distinct, read, size, source=source)
        images = ImageStore(path)
    found = dict(zip(distinct, row_of, strict=True))
    rows = np.array([-1 if ref is None else found[ref] for ref in given])
    if failed:
        products = sum(ref is not None and found[ref] < 0 for ref in given)
        notes.append(f"{products} products have a picture that cannot be read (e.g. {next(iter(failed.values()))})")
    if cache is None:
        weakref.finalize(images, shutil.rmtree, where, ignore_errors=True)
    return rows, images if len(images) else None


def _kept(cache: Path | None, stem: str, make: Callable[[], np.ndarray], *key: bytes | str) -> np.ndarray:
    """``make()``, kept in ``cache`` under a name that differs for another ``key``."""
    if cache is None:
        return make()
    digest = hashlib.sha256()
    for item in key:
        data = item.encode() if isinstance(item, str) else item
        digest.update(len(data).to_bytes(8, "big") + data)
    path = cache / f"{stem}-{digest.hexdigest()[:16]}.npy"
    if path.is_file():
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            path.unlink()  # damaged: made anew
    made = make()
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # two notebooks may make the same at a time
    with partial.open("wb") as file:
        np.save(file, made, allow_pickle=False)
    os.replace(partial, path)
    return made


# --- neighbours


def neighbours(space: Exploration, view: str, query: int | str, k: int = 10) -> pd.DataFrame:
    """The k products nearest to a product (its position) or to a typed title, by cosine of the titles, exactly.

    A product is no neighbour of itself. Duplicates are: other products with the same title come first, at similarity 1,
    as they would for a shopper. Similarities are compared to 1e-6; of equal ones the lower position goes first.

    Returns: columns rank (from 1), position, id, title, label, similarity (-1 to 1).
    """
    of = space.view(view)
    if isinstance(query, str):
        point, own = of.embed([_typed(query)]), None
    else:
        _enough(space)
        own = _position(space, query)
        point = of.titles[own : own + 1]
    return _ranked(space, point, of.titles, np.arange(len(of.titles)), k, own)


def nearest_positions(embedded: np.ndarray, k: int, queries: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each row by cosine, itself excepted: exact, in blocks, so that 50,000 rows fit memory.

    Args:
        embedded: (N, H). k: clipped to N - 1. queries: rows (n,) to ask for; None: all.

    Returns: positions (n, k) and similarities (n, k), most similar first; equal ones (to 1e-6) by position.
    """
    _at_least_one(k)
    unit = torch.from_numpy(_unit(embedded))
    queries = np.arange(len(unit)) if queries is None else np.asarray(queries, dtype=int)
    k, positions, similarities = min(k, len(unit) - 1), [], []
    held = torch.empty(BLOCK, len(unit))  # one piece of memory for all blocks: new pages would take a third of the time
    for block in np.array_split(queries, max(1, -(-len(queries) // BLOCK))):
        similarity = torch.mm(unit[block], unit.T, out=held[: len(block)])
        similarity[torch.arange(len(block)), torch.from_numpy(block)] = -2  # itself: below any cosine
        found, order = _top(similarity, k)
        positions.append(order)
        similarities.append(found)
    return np.concatenate(positions), np.concatenate(similarities)


def moved(space: Exploration, before: str, after: str, k: int = 10) -> pd.DataFrame:
    """How much of each product's neighbourhood stayed: the products that changed most come first.

    Returns: columns position, id, title, label, kept (share, 0 to 1, of the k nearest neighbours in ``before`` that are
        among the k nearest in ``after``), similarity to the old neighbours before and in ``after`` (mean cosines
        old_before and old_after).
    """
    if before == after:
        raise ExploreError(f"'{before}' is compared with itself; name two views")
    views = space.view(before).titles, space.view(after).titles
    _enough(space)
    first, second = (
        _kept(space.cache, f"{space.name}-near", lambda t=titles: nearest_positions(t, k)[0], str(k), _content(titles))
        for titles in views
    )
    kept = (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)
    old_before, old_after = (_mean_cosine(titles, first) for titles in views)
    table = space.products[["id", "title", "label"]].assign(kept=kept, old_before=old_before, old_after=old_after)
    table.insert(0, "position", np.arange(len(table)))
    return table.sort_values(["kept", "old_after", "position"], ignore_index=True)


def _mean_cosine(embedded: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Mean cosine (N,) of each row (N, H) with the rows ``near`` it (N, k)."""
    unit = _unit(embedded)
    blocks = np.array_split(np.arange(len(unit)), max(1, len(unit) // 1024))
    return np.concatenate([np.einsum("nh,nkh->n", unit[b], unit[near[b]]) for b in blocks]) / near.shape[1]


def _content(rows: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(rows)).digest()


def _top(similarity: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row and their columns; to 1e-6 equal ones by column. Overwrites ``similarity``."""
    n = similarity.shape[1]
    rounded = similarity.mul_(2**20).round_()  # whole numbers, which float32 holds exactly
    value, column = rounded.topk(min(k + 1, n), dim=1)
    value, column = value.numpy(), column.numpy()
    if k < n:  # where the k-th equals the next, topk's choice is arbitrary
        for row in np.flatnonzero(value[:, k - 1] == value[:, k]):
            column[row, :k] = np.argsort(-rounded[row].numpy(), kind="stable")[:k]
    value, column = np.take_along_axis(rounded.numpy(), column[:, :k], axis=1), column[:, :k]
    order = np.lexsort((column, -value), axis=1)
    return np.take_along_axis(value, order, 1) / 2**20, np.take_along_axis(column, order, 1)


def _ranked(
    space: Exploration, point: np.ndarray, candidates: np.ndarray, positions: np.ndarray, k: int, own: int | None = None
) -> pd.DataFrame:
    """The k candidates (M, H), which stand for products at ``positions`` (M,), nearest to ``point`` (1, H)."""
    _at_least_one(k)
    similarity = torch.from_numpy(_unit(point)) @ torch.from_numpy(_unit(candidates)).T
    if own is not None:
        similarity[:, own] = -2
    found, order = _top(similarity, min(k, len(candidates) - (own is not None)))
    rows = positions[order[0]]
    table = space.products.loc[rows, ["id", "title", "label"]].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(rows) + 1))
    table.insert(1, "position", rows)
    return table.assign(similarity=found[0])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows at length 1; a row of zeros stays."""
    length = np.sqrt(np.einsum("nh,nh->n", rows, rows))[:, None]  # norm() would square into an array of its own
    return np.divide(rows, np.maximum(length, 1e-12), dtype=np.float32, casting="same_kind")


def _at_least_one(k: int) -> None:
    if k < 1:
        raise ExploreError(f"k is {k}; at least 1 neighbour")


def _typed(title: str) -> str:
    if not title.strip():
        raise ExploreError("the title is empty")
    return " ".join(title.split())


def _position(space: Exploration, query: int) -> int:
    if not 0 <= query < len(space.products):
        raise ExploreError(f"position {query}: expected 0 to {len(space.products) - 1}")
    return int(query)


def _enough(space: Exploration, least: int = 2) -> None:
    if len(space.products) < least:
        raise ExploreError(f"{space.name} has {len(space.products)} products; at least {least} are needed")


# --- titles and pictures


def pictures_of(space: Exploration, view: str, title: str, k: int = 10) -> pd.DataFrame:
    """The k pictures nearest to a typed title in the shared space, each picture once (of its first product).

    Returns: as `neighbours`.
    Raises: ExploreError: the view shares no space with pictures. ModelError: as `View.shared`.
    """
    shared = _shared(space, view)
    positions = _distinct_pictures(space)
    return _ranked(space, shared.project([_typed(title)]), shared.pictures[positions], positions, k)


def titles_of(space: Exploration, view: str, picture: int, k: int = 10) -> pd.DataFrame:
    """The k titles nearest to the picture of the product at position ``picture``, its own among them.

    Returns: as `neighbours`. Raises: ExploreError: no picture there, or as `pictures_of`.
    """
    shared, position = _shared(space, view), _position(space, picture)
    if np.isnan(shared.pictures[position]).any():
        raise ExploreError(f"the product at position {position} has no picture")
    point = shared.pictures[position : position + 1]
    return _ranked(space, point, shared.titles, np.arange(len(shared.titles)), k)


def recall(space: Exploration, view: str, ks: Sequence[int] = (1, 5, 10), part: str = "dev") -> pd.DataFrame:
    """How often a title finds its picture, and a picture its title, among the k nearest of all candidates of ``part``.

    Queries and candidates are the distinct pictures and the distinct normalised titles of the products of ``part`` that
    have a picture. A candidate is a hit when some product has it together with the query: a title of two
    products has two pictures that count. Ties are lost: a candidate as near as the best hit, and no hit itself, stands
    before it, so that a space where everything coincides has recall 0.

    Returns: columns direction, k, recall (0 to 1), chance (its expectation for a random order), n (queries).
    """
    shared, products = _shared(space, view), space.products
    rows = products.index[(products["part"] == part) & (products["image_row"] >= 0)].to_numpy()
    if not len(rows):
        raise ExploreError(f"{space.name}: no product of part '{part}' with a picture is in this exploration")
    title, first_title = _groups(products.loc[rows, "title"].map(normalise_title))
    picture, first_picture = _groups(products.loc[rows, "image_row"])
    titles, pictures = _unit(shared.titles[rows[first_title]]), _unit(shared.pictures[rows[first_picture]])
    pairs = sparse.csr_array((np.ones(len(rows), bool), (title, picture)), shape=(len(titles), len(pictures)))
    found = []
    for direction, queries, candidates, hits in (
        ("title to picture", titles, pictures, pairs),
        ("picture to title", pictures, titles, pairs.T.tocsr()),
    ):
        rank = _rank_of_best(queries, candidates, hits)
        number = np.diff(hits.indptr)
        for k in ks:
            # P(no hit among k drawn from M candidates with p hits) = hypergeometric(0)
            chance = 1 - stats.hypergeom.pmf(0, len(candidates), number, min(k, len(candidates)))
            found.append((direction, k, float((rank <= k).mean()), float(chance.mean()), len(queries)))
    return pd.DataFrame(found, columns=["direction", "k", "recall", "chance", "n"])


def _groups(keys: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's key, and the first row of each."""
    number, _ = pd.factorize(keys)
    return number, np.unique(number, return_index=True)[1]


def _rank_of_best(queries: np.ndarray, candidates: np.ndarray, hits: sparse.csr_array) -> np.ndarray:
    """Rank (n,), from 1, of each query's nearest hit among the candidates; ties are lost."""
    ranks = []
    for rows in np.array_split(np.arange(len(queries)), max(1, len(queries) // BLOCK)):
        similarity, hit = queries[rows] @ candidates.T, hits[rows].toarray()
        best = np.where(hit, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks.append(1 + ((similarity >= best - 1e-6) & ~hit).sum(axis=1))
    return np.concatenate(ranks)


def _shared(space: Exploration, view: str) -> Shared:
    shared = space.view(view).shared
    if shared is None:
        having = [name for name, v in space.views.items() if v.share]
        raise ExploreError(
            f"'{view}' shares no space with pictures; views that do: {', '.join(having) or 'none (add ConVIRT)'}"
        )
    return shared


def _distinct_pictures(space: Exploration) -> np.ndarray:
    """Positions of the products with a picture that no earlier product has."""
    row = space.products["image_row"]
    return np.flatnonzero(((row >= 0) & ~row.duplicated()).to_numpy())


# --- the map


def project(
    space: Exploration, views: Sequence[str] | None = None, seed: int = 0, fitted: int = 10_000, k: int = 15
) -> dict[str, np.ndarray]:
    """One map for all views, so that a product's positions compare: UMAP (McInnes et al., 2018), seeded.

    One UMAP is fitted on the rows of all views together. The neighbours of a row are the nearest rows of its own view,
    by cosine, and itself in the other views, at distance 0. So each view's map shows that view's neighbourhoods, and a
    product stays in its place unless its neighbours pull it away. Views that are rotated onto each other and then
    fitted together fall apart where adaptation changed much, and in `AlignedUMAP`, or where one map starts from the
    other, a product that kept its neighbours moves as far as one that did not. The price: a view's map borrows a little
    from the others. As in any UMAP, distances between far groups mean little. Encoders may differ in width.

    Args:
        views: names; None: all.
        fitted: rows in all that are fitted. With more, a seeded sample of products is fitted, and each of the others
            is put beside the fitted product that is nearest to it in the same view.
        k: neighbours of a row in its own view, itself included.

    Returns: name to positions (N, 2) float32, in order. Kept in ``space.cache``, by content and parameters.
    """
    names = list(space.views) if views is None else list(views)
    if not names:
        raise ExploreError("no view to project")
    _enough(space, 5)
    embedded = [space.view(name).titles for name in names]
    umap_version = version("umap-learn")
    key = [f"{umap_version} {seed} {fitted} {k}", *map(_content, embedded)]
    maps = _kept(space.cache, f"{space.name}-map", lambda: _project(embedded, seed, fitted, k), *key)
    return dict(zip(names, maps, strict=True))


def _project(embedded: list[np.ndarray], seed: int, fitted: int, k: int) -> np.ndarray:
    """Positions (V, N, 2) of V views of N products."""
    from umap import UMAP  # seconds to import

    count, rng = len(embedded[0]), np.random.default_rng(seed)
    chosen = np.arange(count)
    if count * len(embedded) > fitted:
        chosen = np.sort(rng.choice(chosen, max(5, fitted // len(embedded)), replace=False))
    n = len(chosen)
    own = np.arange(n)
    near, distance = [], []
    for i, rows in enumerate(embedded):
        position, similarity = nearest_positions(rows[chosen], k - 1)
        twins = [own + n * j for j in range(len(embedded)) if j != i]
        near.append(np.column_stack([own + n * i, *twins, position + n * i]))
        distance.append(np.column_stack([np.zeros((n, len(embedded))), np.maximum(1 - similarity, 0)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that neighbours were given without an index, and one thread for the seed
        mapper = UMAP(
            n_neighbors=near[0].shape[1],
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(np.concatenate(near), np.concatenate(distance).astype(np.float32)),
        )
        # The rows themselves only lay out parts of the graph that hang together by nothing.
        found = mapper.fit_transform(np.tile(_unit(embedded[0][chosen]), (len(embedded), 1)))
    found = found.reshape(len(embedded), n, 2).astype(np.float32)
    if n == count:
        return found
    # The others lie beside the fitted product that is nearest in their view. A mean of several would lie between
    # groups, where nothing is; the offset is the same in all views, so that a product that stayed coincides.
    spread = np.median([cKDTree(there).query(there, 2)[0][:, 1] for there in found])
    offset = rng.normal(scale=spread, size=(count, 2)).astype(np.float32)
    offset[chosen] = 0
    beside = [there[_nearest_of(rows, chosen)] + offset for rows, there in zip(embedded, found, strict=True)]
    return np.stack(beside)


def _nearest_of(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each row (N, H) the number (N,), in ``chosen`` (n,), of the chosen row nearest to it."""
    unit = torch.from_numpy(_unit(rows))
    among = unit[chosen].T.contiguous()
    nearest_one = torch.cat([(block @ among).argmax(dim=1) for block in unit.split(BLOCK)]).numpy()
    nearest_one[chosen] = np.arange(len(chosen))
    return nearest_one


def map_table(space: Exploration, positions: dict[str, np.ndarray]) -> pd.DataFrame:
    """What `project` returns as a table for ``figures.maps``: columns view, position, id, label, x, y."""
    rows = space.products[["id", "label"]].reset_index(names="position")
    return pd.concat(
        [rows.assign(view=name, x=there[:, 0], y=there[:, 1]) for name, there in positions.items()], ignore_index=True
    )[["view", "position", "id", "label", "x", "y"]]


def neighbour_table(space: Exploration, views: Sequence[str], queries: Sequence[int], k: int = 5) -> pd.DataFrame:
    """`neighbours` of several products in several views, for ``figures.neighbour_pictures``.

    Returns: columns query, view and those of `neighbours`; at rank 0 the product itself.
    """
    found = []
    for query in queries:
        own = space.products.loc[[_position(space, query)], ["id", "title", "label"]]
        own = own.assign(rank=0, position=query, similarity=1.0)
        for view in views:
            near = neighbours(space, view, int(query), k)
            found.append(pd.concat([own[near.columns], near]).assign(query=query, view=view))
    table = pd.concat(found, ignore_index=True)
    return table[["query", "view", *table.columns.drop(["query", "view"])]]


# --- classes and regions


def confusions(space: Exploration, before: str, after: str) -> pd.DataFrame:
    """Pairs of classes that the views' classifiers confuse, on the products that both read (of a study: Test).

    Returns: columns label, predicted (never equal), before, after (products of ``label`` taken for ``predicted``),
        change (after - before); the most confused pair, in either view, first.
    """
    views = [space.view(name) for name in (before, after)]
    for view in views:
        if view.predicted is None:
            raise ExploreError(f"'{view.name}' has no predictions")
    table = pd.DataFrame({"label": space.products["label"], "before": views[0].predicted, "after": views[1].predicted})
    table = table.dropna()
    counts = [table.groupby(["label", when]).size().rename_axis(["label", "predicted"]) for when in ("before", "after")]
    found = pd.concat(counts, axis=1, keys=["before", "after"]).fillna(0).astype(int).reset_index()
    found = found[found["label"] != found["predicted"]].assign(change=found["after"] - found["before"])
    most = found[["before", "after"]].max(axis=1)
    return found.iloc[np.lexsort((found["predicted"], found["label"], -most))].reset_index(drop=True)


def region(space: Exploration, positions: Sequence[int], most: int = 20) -> dict[str, pd.DataFrame]:
    """What sets a selection of products, such as a lasso, apart from the others.

    Labels and words come by the z-score of their log-odds ratio, inside against outside, with a Dirichlet prior of the
    catalogue's frequencies, as heavy as the selection (Monroe, Colaresi & Quinn, 2008): a word that stands once inside
    and never outside has the largest lift and a low z. A title counts a word once; words are of normalised titles, and
    stand in two of the selected at least.

    Returns: titles: position, id, title, label. labels: label, count, share (of the selection), elsewhere (share of the
        others), z. words: word, inside, outside (titles that hold it), lift (share inside over share of all), z.
        At most ``most`` labels and words.
    """
    chosen = np.unique(np.array([_position(space, p) for p in positions], dtype=int))
    if not len(chosen):
        raise ExploreError("the selection is empty")
    inside = np.zeros(len(space.products), dtype=bool)
    inside[chosen] = True
    titles = space.products.loc[chosen, ["id", "title", "label"]].reset_index(drop=True)
    titles.insert(0, "position", chosen)

    labels = _odds(space.products["label"].map(lambda label: [label]), inside, "label").head(most)
    others = max(1, int((~inside).sum()))
    labels = labels.assign(share=labels["inside"] / len(chosen), elsewhere=labels["outside"] / others)
    words = _odds(
        space.products["title"].map(lambda title: sorted(set(normalise_title(title).split()))), inside, "word"
    )
    share = (words["inside"] + words["outside"]) / len(inside)
    words = words.assign(lift=words["inside"] / len(chosen) / share)
    if len(chosen) > 1:
        words = words[words["inside"] > 1]
    return {
        "titles": titles,
        "labels": labels.rename(columns={"inside": "count"})[["label", "count", "share", "elsewhere", "z"]],
        "words": words[["word", "inside", "outside", "lift", "z"]].head(most),
    }


def _logit(counts: np.ndarray) -> np.ndarray:
    return np.log(counts) - np.log(np.maximum(counts.sum() - counts, 1e-9))


def _odds(items: pd.Series, inside: np.ndarray, name: str) -> pd.DataFrame:
    """Each item's number of rows inside and outside, and the z-score of its log-odds ratio; highest first."""
    rows = pd.DataFrame({name: items, "inside": inside}).explode(name).dropna(subset=name)
    counts = pd.crosstab(rows[name], rows["inside"]).reindex(columns=[True, False], fill_value=0)
    y_in, y_out = counts[True].to_numpy(float), counts[False].to_numpy(float)
    prior = y_in.sum() * (y_in + y_out) / (y_in + y_out).sum()  # the catalogue's shares, as heavy as the selection
    odds = _logit(y_in + prior) - _logit(y_out + prior)
    z = odds / np.sqrt(1 / (y_in + prior) + 1 / (y_out + prior))
    found = pd.DataFrame({name: counts.index, "inside": y_in.astype(int), "outside": y_out.astype(int), "z": z})
    return found[found["inside"] > 0].sort_values(["z", name], ascending=[False, True], ignore_index=True)


# --- measures


def measures(space: Exploration, view: str, k: int = 10, most: int = 5000, seed: int = 0) -> pd.DataFrame:
    """The measures of `MEASURES`, for all products and for those of head and of tail classes.

    Adaptation has seen the titles of the SSL part: measure on Dev (``of_study(..., part="dev")``). Neighbours are
    looked for among all products of the exploration. What a part has no two products for is NaN.

    Args:
        k: neighbours of label agreement.
        most: of more products a seeded sample of so many is measured.

    Returns: columns measure, part (all, head, tail), value, n (products measured).
    """
    of, products = space.view(view), space.products
    _enough(space)
    rows = np.arange(len(products))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    label, size = products["label"].to_numpy()[rows], products["size"].to_numpy()[rows]
    first, second = (torch.from_numpy(of.noisy(list(products["title"][rows]), seed + i)) for i in range(2))
    unit = torch.from_numpy(_unit(of.titles[rows]).astype(np.float64))
    ask = {
        "title alignment": lambda of: losses.alignment(first[of], second[of]),
        "uniformity": lambda of: losses.uniformity(unit[of]),
        "anisotropy": lambda of: anisotropy(unit[of].numpy()),
        "effective rank": lambda of: effective_rank(unit[of].numpy()),
    }
    if (label != "").any():
        near, _ = nearest_positions(of.titles, k, rows)
        agree = (products["label"].to_numpy()[near] == label[:, None]).mean(axis=1)
        ask["label agreement"] = lambda of: agree[of].mean()
    if of.shared is not None:
        titles, pictures = (torch.from_numpy(x[rows]) for x in (of.shared.titles, of.shared.pictures))
        paired = ~pictures[:, 0].isnan().numpy()
        ask["title-picture alignment"] = lambda of: losses.alignment(titles[of & paired], pictures[of & paired])
    found = []
    for part in ("all", "head", "tail"):
        chosen = np.ones(len(rows), dtype=bool) if part == "all" else size == part
        for measure in [name for name in MEASURES if name in ask]:
            value = float(ask[measure](chosen)) if chosen.sum() > 1 else np.nan
            found.append((measure, part, value, int(chosen.sum())))
    return pd.DataFrame(found, columns=["measure", "part", "value", "n"])


def anisotropy(unit: np.ndarray) -> float:
    """Mean cosine of two different rows of unit length (N, H), N >= 2, over all pairs (Ethayarajh, 2019)."""
    n = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()) / (n * (n - 1)))


def effective_rank(rows: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares (Roy & Vetterli, 2007), of rows (N, H) less their mean.

    Less their mean, since the direction that all share is what anisotropy measures. In [1, min(N - 1, H)]; 1 when all
    rows coincide.
    """
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    share = values[values > 1e-9 * max(values.max(), 1e-300)]
    share = share / share.sum() if len(share) else np.ones(1)
    return float(np.exp(-(share * np.log(share)).sum()))


def over_study(
    ask: Callable[[Exploration, str], pd.DataFrame],
    study: Study,
    out: Path,
    dataset: str,
    methods: Sequence[str] | None = None,
    part: str = "dev",
) -> pd.DataFrame:
    """``ask(space, view)``, such as `measures` or `recall`, of every method and seed, on the products of ``part``.

    Args:
        methods: None: all of the study's with an encoder of their own, variants aside. One without adaptation has one,
            and seed 0.

    Returns: columns dataset, method, seed, and those of ``ask``.
    """
    own = [m for m in study.methods if m in METHODS and METHODS[m].classifier == "finetune"]
    methods = own if methods is None else methods
    found = []
    for method in methods:
        for seed in study.seeds if METHODS[method].adapts else study.seeds[:1]:
            space = of_study(study, out, dataset, [(method, seed)], part)
            answer = ask(space, view_name(method, seed))
            found.append(answer.assign(dataset=dataset, method=method, seed=seed))
    table = pd.concat(found, ignore_index=True)
    return table[["dataset", "method", "seed", *found[0].columns.drop(["dataset", "method", "seed"])]]


def over_seeds(table: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Mean over seeds and its 95% interval, from Student's t with (seeds - 1) degrees of freedom; NaN for one seed.

    Args:
        table: column seed, column ``value``, and columns that tell rows of one seed apart, such as dataset, method,
            measure, part; numbers that vary with the seed must be left out before.

    Returns: those columns in order of appearance, seeds (their number), ``value`` (mean), low, high.
    """
    keys = [column for column in table if column not in ("seed", value)]
    groups = table.groupby(keys, sort=False, dropna=False)[value]
    found = groups.agg(["size", "mean", "std"]).reset_index()
    half = stats.t.ppf(0.975, np.maximum(found["size"] - 1, 1)) * found["std"] / np.sqrt(found["size"])
    return found[keys].assign(
        seeds=found["size"], **{value: found["mean"]}, low=found["mean"] - half, high=found["mean"] + half
    )
