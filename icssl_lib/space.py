"""Products as encoders see them, and the questions that one can ask of that; each answer is a DataFrame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from icssl_lib.catalogue import normalise_title
from icssl_lib.config import nearest
from icssl_lib.encoders import nearest_rows
from icssl_lib.losses import uniformity


class ExploreError(ValueError):
    """A question that cannot be answered; the message names what is wrong and what is known."""


def nothing_shared() -> NoReturn:
    raise ExploreError("this view has no joint space with pictures; an encoder adapted by ConVIRT has one")


@dataclass
class View:
    """N products under one encoder.

    embed: titles to (n, H). titles: (N, H) float32. predicted: (N,) objects, a classifier's labels, missing where it
    was not asked; None: no classifier. share: makes the space that titles and pictures share: what projects (n, H) to
    (n, D), and the pictures, (N, D), any row where a product has none. Raises: ExploreError: no picture was shown."""

    embed: Callable[[Sequence[str]], Tensor | np.ndarray]
    titles: Tensor
    predicted: np.ndarray | None = None
    share: Callable[[], tuple[Callable[[Tensor], Tensor], Tensor]] = nothing_shared


@dataclass
class Exploration:
    """Products, views of them by name, and what one can ask. A product is named by its row in ``products``.

    products: columns id, title, label ("": unknown), part ("": of no study), size (head or tail, "": no label) and
    image_row (equal for products that share a picture, -1: none). picture: a row to (S, S, 3) uint8, or None."""

    products: pd.DataFrame
    picture: Callable[[int], np.ndarray | None]
    views: dict[str, View]

    def view(self, name: str) -> View:
        """Raises: ExploreError: no view of that name, with the nearest one."""
        if name not in self.views:
            raise ExploreError(f"no view '{name}'; {nearest(name, list(self.views))}")
        return self.views[name]

    def nearest(self, view: str, query: int | str, k: int = 10, pictures: bool = False) -> pd.DataFrame:
        """The k products nearest, by cosine, to a product (its row; not itself) or to a typed title.

        pictures: those whose pictures are nearest, each picture once, in the space that titles and pictures share.
        Returns: row, id, title, label, rank, similarity."""
        of, typed, among = self.view(view), isinstance(query, str), self.products.index
        point = torch.as_tensor(of.embed([" ".join(query.split())])).float() if typed else of.titles[[query]]
        known = of.titles
        if pictures:
            (project, known), at = of.share(), self.products["image_row"]
            point, among = project(point), among[(at >= 0) & ~at.duplicated()]
        elif not typed:
            among = among.drop(query)
        similarity, near = nearest_rows(point, known[among], k)
        found = self.products.loc[among[near[0].numpy()], ["id", "title", "label"]].rename_axis("row").reset_index()
        return found.assign(rank=np.arange(1, len(found) + 1), similarity=similarity[0].numpy())

    def moved(self, before: str, after: str, k: int = 10) -> pd.DataFrame:
        """Products by the share ``kept`` of their k nearest in ``before`` that are among the k nearest in ``after``.
        Returns: row, id, title, label, kept; what kept the fewest first."""
        share = kept(self.view(before).titles, self.view(after).titles, k)
        found = self.products[["id", "title", "label"]].assign(kept=share).rename_axis("row").reset_index()
        return found.sort_values(["kept", "row"], ignore_index=True)

    def confusions(self, before: str, after: str) -> pd.DataFrame:
        """Pairs of classes that the views' classifiers confuse, on products that both were asked (of a study: Test).
        Returns: label, predicted (another), before, after (products), change; the most confused pair first."""
        guesses = {"before": self.view(before).predicted, "after": self.view(after).predicted}
        asked = self.products[["label"]].assign(**guesses).dropna()
        wrong = asked.melt("label", var_name="when", value_name="predicted").query("label != predicted")
        found = wrong.groupby(["label", "predicted", "when"]).size().unstack(fill_value=0)
        found = found.reindex(columns=list(guesses), fill_value=0).rename_axis(columns=None).reset_index()
        order = np.argsort(-found[list(guesses)].max(axis=1), kind="stable")
        return found.assign(change=found["after"] - found["before"]).iloc[order].reset_index(drop=True)

    def words(self, rows: Sequence[int]) -> pd.DataFrame:
        """Words that set a selection apart, by the z-score of their log-odds ratio with a Dirichlet prior of the
        catalogue's frequencies (Monroe, Colaresi & Quinn, 2008): a word that stands once inside and never outside has
        a low z. Returns: word, inside, outside (products that hold it), z."""
        words = self.products["title"].map(lambda title: list(set(normalise_title(title).split()))).explode()
        counts = pd.crosstab(words, words.index.isin(rows)).reindex(columns=[True, False], fill_value=0)
        count = counts.to_numpy().T  # (2, words)
        if not count[0].any():
            raise ExploreError("the selection is empty")
        weight = count + count[0].sum() * count.sum(axis=0) / count.sum()  # a prior as heavy as the selection
        odds = np.log(weight) - np.log(weight.sum(axis=1, keepdims=True) - weight)
        found = pd.DataFrame({"word": counts.index, "inside": count[0], "outside": count[1]})
        found["z"] = (odds[0] - odds[1]) / np.sqrt((1 / weight).sum(axis=0))
        return found[count[0] > 0].sort_values(["z", "word"], ascending=[False, True], ignore_index=True)

    def recall(self, view: str, ks: Sequence[int] = (1, 5, 10), part: str = "dev") -> pd.DataFrame:
        """How often a title finds its picture, and a picture its title, among the k nearest of all of ``part``.
        Products whose title or picture came before are left out.
        Returns: direction, k, recall, chance (of a random order), n (queries)."""
        (project, pictures), found = self.view(view).share(), []
        chosen = self.products[(self.products["part"] == part) & (self.products["image_row"] >= 0)]
        chosen = chosen.assign(title=chosen["title"].map(normalise_title))
        rows = chosen.drop_duplicates("title").drop_duplicates("image_row").index
        title, picture, n = project(self.view(view).titles[rows]), pictures[rows], len(rows)
        ways = {"title to picture": (title, picture), "picture to title": (picture, title)}
        for direction, (queries, answers) in ways.items():
            hit = (nearest_rows(queries, answers, max(ks))[1] == torch.arange(n)[:, None]).double()  # (n, k)
            found += [(direction, k, float(hit[:, :k].sum(dim=1).mean()), min(k / n, 1), n) for k in ks]
        return pd.DataFrame(found, columns=["direction", "k", "recall", "chance", "n"])

    def measures(self, view: str, k: int = 10) -> pd.DataFrame:
        """Numbers of the space of titles, for all products and those of head and tail classes, where there are two.

        uniformity: log of the mean Gaussian potential of two (Wang & Isola, 2020); low: all of the sphere is used.
        anisotropy: mean cosine of two titles (Ethayarajh, 2019); near 1 all seem alike. label agreement: share of a
        title's k nearest with its label. effective rank: see there. Of more than 5,000 products a seeded sample.
        Returns: measure, part, value, n (products)."""
        rows = np.sort(np.random.default_rng(0).permutation(len(self.products))[:5000])
        products, sphere, found = self.products.loc[rows], normalize(self.view(view).titles[rows]).double(), []
        near = products["label"].to_numpy()[nearest_rows(sphere, sphere, k, skip_self=True)[1]]
        agrees = (near == products[["label"]].to_numpy()).mean(axis=1)
        for part in ("all", "head", "tail"):
            who = np.flatnonzero((products["size"] == part) | (part == "all"))
            x, n = sphere[who], len(who)
            if n > 1:
                cosine = float(x.sum(dim=0).square().sum() / n - 1) / (n - 1)
                values = {"uniformity": float(uniformity(x)), "anisotropy": cosine}
                values |= {"label agreement": agrees[who].mean(), "effective rank": effective_rank(x.numpy())}
                found += [(name, part, value, n) for name, value in values.items()]
        return pd.DataFrame(found, columns=["measure", "part", "value", "n"])


def kept(before: Tensor, after: Tensor, k: int) -> np.ndarray:
    """The share (N,) of each row's k nearest in ``before`` (N, H) that are, in ``after``, as near as the k nearest."""
    near, after = nearest_rows(before, before, k, skip_self=True)[1], normalize(after)
    farthest = nearest_rows(after, after, k, skip_self=True)[0][:, -1:]
    cosines = torch.stack([(after * after[row]).sum(dim=1) for row in near.T], dim=1)
    return (cosines >= farthest - 1e-5).numpy().mean(axis=1)


def effective_rank(rows: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares, of rows (N, H) less their mean: in [1, min(N - 1, H)]."""
    values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    return float(np.exp(stats.entropy(values)))
