"""Roads without fine-tuning, compared on Dev: logistic regression on words, letters and a frozen encoder, step by step.

python benchmarks/roads.py config/law.yaml runs/law --datasets world1_000 world0_100      (a minute a data set and seed)

Encoders are those that the study left in its run folder. Rows go to roads.csv; Test is not read. A way is a list of
steps, each named by what it adds: see WAYS.
"""

import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from torch import nn

from icssl_lib.adapt import build_vision, picture_features
from icssl_lib.catalogue import Catalogue, open_catalogue, train_subset
from icssl_lib.config import Run, Study, load_config
from icssl_lib.encoders import embed_titles, load_text
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.lexical import WORD, C
from icssl_lib.recommended import named
from icssl_lib.runs import path_of, resolved

ROWS = Path(__file__).with_name("roads.csv")


@dataclass(frozen=True)
class Way:
    encoder: float | None = 1.0  # share of adaptation in the weights: 0 as it comes, 1 adapted; None: words alone
    even: bool = False  # titles' dimensions are centred and half-whitened
    length: float = 1.0  # of a title's row, beside the words' and the letters' 1
    picture: float = 0.0  # length of the picture's row that the teacher sees; 0: it sees none
    taught: bool = False  # a round of self-training on titles without a label
    prior: float = 0.0  # how far the teacher's classes are brought to the labels' frequencies, 0 to 1
    method: str = "convirt"


EVEN = Way(even=True, length=0.7)
WAYS = {
    "words": Way(encoder=None),
    "as it comes": Way(encoder=0.0),
    "adapted": Way(),
    "half-way": Way(encoder=0.5),
    "adapted, taught": Way(taught=True),
    "even": EVEN,
    "even 1": replace(EVEN, length=1.0),
    "even, as it comes": replace(EVEN, encoder=0.0),
    "even, half-way": replace(EVEN, encoder=0.5),
    "even, taught": replace(EVEN, taught=True),
    "even, taught, prior": replace(EVEN, taught=True, prior=0.5),
    "even, taught by pictures": replace(EVEN, taught=True, picture=0.7),
    "even 1, taught by pictures": replace(EVEN, taught=True, picture=0.7, length=1.0),
    "even, taught, as it comes": replace(EVEN, taught=True, encoder=0.0),
    "even, taught, half-way": replace(EVEN, taught=True, encoder=0.5),
    "even, taught, shuffled": replace(EVEN, taught=True, method="convirt_shuffled"),
}


class Roads:
    """A data set of a run, and what its ways share. Rows: products, then one title for each label's name."""

    def __init__(self, study: Study, out: Path, dataset: str) -> None:
        self.study, self.out, self.known = resolved(study, out), out, {}
        self.catalogue: Catalogue = open_catalogue(out / "catalogues" / dataset)
        products, self.labels = self.catalogue.products, self.catalogue.labels
        self.titles = [*products.title, *named(self.labels).title]
        self.code = pd.Index(self.labels).get_indexer(products.label)
        self.part = {part: np.flatnonzero(products.part == part) for part in ("ssl", "train", "dev")}
        read = [*products.title[products.part.isin(["ssl", "train"])], *named(self.labels).title]
        kinds = {"token_pattern": WORD}, {"analyzer": "char_wb", "ngram_range": (2, 5)}
        blocks = [TfidfVectorizer(**kind).fit(read).transform(self.titles) for kind in kinds]
        self.words = sparse.hstack(blocks, format="csr")

    def title(self, way: Way, seed: int) -> np.ndarray:
        """Unit rows of the pooled encoder (M, H)."""
        if (key := (way.encoder, way.method if way.encoder else "", seed if way.encoder else 0)) not in self.known:
            model, tokenizer = load_text(self.study.text.model)
            if way.encoder:
                folder = path_of(self.out, "encoders", Run(self.catalogue.name, way.method, seed))
                move(model, load_text(str(folder))[0], way.encoder)
            with fast(model):
                self.known[key] = normalize(embed_titles(model, tokenizer, self.titles, self.study.text).numpy())
        return self.known[key]

    def picture(self) -> np.ndarray:
        """Unit rows of the frozen vision tower (M, F); zeros without a picture."""
        if "picture" not in self.known:
            rows = picture_features(
                self.catalogue, build_vision(self.study).eval(), make_accelerator(self.study.runtime)
            )
            rows, at = normalize(rows.numpy()), self.catalogue.products.image_row.to_numpy()
            rows = np.where(at[:, None] >= 0, rows[at], 0)
            self.known["picture"] = np.vstack([rows, np.zeros((len(self.labels), rows.shape[1]))])
        return self.known["picture"]

    def evened(self, rows: np.ndarray, length: float) -> np.ndarray:
        """Centred by all but Dev and Test, each principal direction over the root of its deviation, of ``length``."""
        own = rows[np.concatenate([self.part["ssl"], self.part["train"]])]
        own = own[own.any(axis=1)]
        values, axes = np.linalg.eigh(np.cov(own.T))
        moved = (rows - own.mean(axis=0)) @ axes / np.maximum(values, values.max() * 1e-4) ** 0.25
        return length * normalize(moved) * rows.any(axis=1)[:, None]

    def dev(self, way: Way, fraction: float, seed: int) -> tuple[float, float]:
        """Accuracy on Dev, and on its products of classes without a label."""
        blocks = [self.words]
        if way.encoder is not None:
            rows = self.title(way, seed)
            blocks.append(sparse.csr_matrix(self.evened(rows, way.length) if way.even else rows))
        x, k, n = sparse.hstack(blocks, format="csr"), len(self.labels), len(self.code)
        products = self.catalogue.products
        train = products[products.part == "train"].reset_index(drop=True)
        own = pd.Index(products.id).get_indexer(train_subset(train, fraction, seed).id)
        at, target = np.r_[own, n : n + k], np.r_[self.code[own], :k]
        weight = np.ones(len(at))
        if way.taught:
            pool = np.r_[self.part["ssl"], np.setdiff1d(self.part["train"], own)]
            shown = [x, sparse.csr_matrix(self.evened(self.picture(), way.picture))] if way.picture else [x]
            seen = sparse.hstack(shown, format="csr")
            share = fitted(seen[at], target, weight).predict_proba(seen[pool])
            frequency = np.bincount(self.code[own], minlength=k) + 1
            share *= (frequency / frequency.sum() / share.mean(axis=0)) ** way.prior
            guess, sure = share.argmax(axis=1), pd.Series(share.max(axis=1) / share.sum(axis=1))
            surest = (sure.groupby(guess).rank(ascending=False, method="first", pct=True) <= 0.3).to_numpy()
            at, target = np.r_[at, pool[surest]], np.r_[target, guess[surest]]
            weight = np.r_[weight, np.full(surest.sum(), 0.3)]
        found = fitted(x[at], target, weight).predict(x[self.part["dev"]])
        right, unseen = found == self.code[self.part["dev"]], ~np.isin(self.code[self.part["dev"]], self.code[own])
        return right.mean(), right[unseen].mean() if unseen.any() else np.nan


def move(model: nn.Module, adapted: nn.Module, share: float) -> None:
    """Move weights a ``share`` of the way to those of ``adapted`` (Wortsman et al., 2022)."""
    for weight, other in zip(model.parameters(), adapted.parameters(), strict=True):
        weight.data.lerp_(other.data, share)


def fitted(x: sparse.csr_matrix, target: np.ndarray, weight: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=C, solver="saga", tol=1e-2, random_state=0).fit(x, target, weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    study = load_config(options.config)
    new = not ROWS.is_file()
    with ROWS.open("a", newline="", encoding="utf-8", buffering=1) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([["dataset", "way", "fraction", "seed", "dev_accuracy", "without_label"]] * new)
        for dataset in options.datasets:
            roads = Roads(study, options.run.resolve(), dataset)
            for way, fraction, seed in (
                (w, f, s) for w in options.ways for f in options.fractions for s in options.seeds
            ):
                found = roads.dev(WAYS[way], fraction, seed)
                table.writerow([dataset, way, fraction, seed, *(f"{value:.4f}" for value in found)])
                print(dataset, way, fraction, seed, *(f"{value:.4f}" for value in found))


if __name__ == "__main__":
    main()
