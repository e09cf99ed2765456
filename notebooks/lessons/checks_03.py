"""Lesson 3, SimCSE: a toy whose titles move on the circle as an encoder trains, and the checks of the exercises."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import altair as alt
import pandas as pd
import torch
from lesson_tools import Hint, Moving, call, compare
from loops import PILED_UP, check_trained, compare_loops, ten_batches, text_tower, trace
from torch import Tensor, nn
from torch.nn.functional import normalize

from icssl_lib import losses
from icssl_lib.encoders import Batch
from icssl_lib.style import PALETTE

TOPICS = torch.arange(24) % 3  # of the toy's titles


def train_on_circle(
    loss: Callable[[Tensor, Tensor], Tensor], encoder: nn.Module | None = None, steps: int = 300, seed: int = 0
) -> tuple[list[Tensor], nn.Module]:
    """Train a small encoder with dropout, by ``loss`` of two passes, to embed 24 toy titles on the circle.

    A title is 6 numbers: its topic's, twice, and noise. The encoder is an MLP, so that titles that are alike start
    and move alike. The random state is left as it was.

    Args:
        loss: of (24, 2) and (24, 2), not of unit length; row i of each is a pass of title i.
        encoder: one to go on with, which stays as it was; None: a new one.

    Returns: unit vectors (24, 2) without dropout, at the start and after each tenth step; the trained encoder.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        titles = torch.eye(3)[TOPICS].repeat(1, 2) + 0.5 * torch.randn(len(TOPICS), 6)
        new = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
        encoder = copy.deepcopy(encoder) if encoder else new
        optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
        path = [_embed(encoder, titles)]
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss(encoder(titles), encoder(titles)).backward()
            optimizer.step()
            if step % 10 == 0:
                path.append(_embed(encoder, titles))
    return path, encoder


def moving_points(paths: dict[str, list[Tensor]]) -> Moving:
    """The toy's titles on their way over the circle, a panel per path and a slider for the step; topics differ
    by marker and colour, and a line is the way that a title has come.

    Args:
        paths: title of the panel to what `train_on_circle` returns, all of one length.
    """
    last = 10 * (len(next(iter(paths.values()))) - 1)
    step = alt.param("step", value=last, bind=alt.binding_range(min=0, max=last, step=10, name="Step "))
    panels = [_panel(path).properties(title=name) for name, path in paths.items()]
    return Moving(alt.hconcat(*panels).add_params(step).configure_view(stroke=None), height=290)


def _panel(path: list[Tensor]) -> alt.LayerChart:
    rows = [[10 * i, title, *xy.tolist()] for i, points in enumerate(path) for title, xy in enumerate(points)]
    table = pd.DataFrame(rows, columns=["step", "title", "x", "y"]).round(3)
    table["topic"] = TOPICS.tolist() * len(path)
    table["uniformity"] = [f"{losses.uniformity(points):.2f}" for points in path for _ in points]
    frame = {"axis": None, "scale": alt.Scale(domain=[-1.2, 1.2])}
    topic = {
        "color": alt.Color("topic:N", scale=alt.Scale(range=PALETTE[:3]), legend=None),
        "shape": alt.Shape("topic:N", scale=alt.Scale(range=["circle", "square", "triangle-up"]), legend=None),
    }
    base = alt.Chart(table, width=200, height=200).encode(alt.X("x:Q", **frame), alt.Y("y:Q", **frame))
    way = base.transform_filter("datum.step <= step").mark_line(strokeWidth=1, opacity=0.3)
    now = base.transform_filter("datum.step == step")
    points = now.mark_point(filled=True, size=80, stroke="black", strokeWidth=0.7, opacity=0.8)
    said = now.transform_filter("datum.title == 0").transform_calculate(said="'uniformity ' + datum.uniformity")
    said = said.mark_text().encode(x=alt.value(100), y=alt.value(100), text="said:N")
    return way.encode(topic["color"], alt.Detail("title:N"), alt.Order("step:Q")) + points.encode(**topic) + said


@torch.no_grad()
def _embed(encoder: nn.Module, titles: Tensor) -> Tensor:
    points = normalize(encoder.eval()(titles), dim=1)
    encoder.train()
    return points


def _batch(rows: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two passes whose rows are not of unit length."""
    generator = torch.Generator().manual_seed(seed)
    first = 3 * torch.randn(rows, width, generator=generator)
    return first, first + torch.randn(rows, width, generator=generator)


def _alignment(answer: Callable[[Tensor, Tensor], Any]) -> str:
    first, second = _batch()
    squares = (normalize(first, dim=1) - normalize(second, dim=1)).square()
    mistakes = {
        "only directions count: bring the rows to unit length first": (first - second).square().sum(dim=1).mean(),
        "that is the mean distance; the squared distance is asked for": squares.sum(dim=1).sqrt().mean(),
        "that is the sum over the batch; take the mean over its rows": squares.sum(),
        "that is a mean over rows and columns: sum the squares of a row, then take the mean over rows": squares.mean(),
        "that is the mean cosine, which grows as pairs come closer": 1 - squares.sum(dim=1).mean() / 2,
    }
    compare(call(answer, first, second), losses.alignment(first, second), mistakes)
    axes = torch.eye(3)
    for second, expected, what in ((axes, 0, "equal"), (axes.roll(1, 0), 2, "orthogonal"), (-axes, 4, "opposite")):
        compare(call(answer, axes, second), expected, {f"{what} pairs have alignment {expected}": math.nan})
    return "0 for equal pairs, 2 for orthogonal ones, 4 for opposite ones; the lengths of the rows do not matter."


def _two_calls(tower: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return tower(**batch), tower(**batch)


def _second_first(tower: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return _two_calls(tower, batch)[::-1]


def _one_call(tower: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return tower(**{name: torch.cat([x, x]) for name, x in batch.items()}).chunk(2)


def _adjacent(tower: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    both = tower(**{name: x.repeat_interleave(2, dim=0) for name, x in batch.items()})
    return both[0::2], both[1::2]


def train_titles(
    tower: nn.Module, batches: list[Batch], temperature: float, lr: float, *,
    passes: Callable = _two_calls, loss_fn: Callable = losses.simcse, dropout: bool = True, clear: bool = True,
) -> list[float]:  # fmt: skip
    """The loop of exercise 3.2; its keyword arguments make others of it, right ones (``passes``) and mistakes."""
    optimizer = torch.optim.Adam(tower.parameters(), lr=lr)
    tower.train(dropout)
    history = []
    for batch in batches:
        if clear:
            optimizer.zero_grad()
        first, second = passes(tower, batch)
        loss = loss_fn(first, second, temperature)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def _eq_3(first: Tensor, second: Tensor, temperature: float, unit: bool = True, own: bool = False) -> Tensor:
    """Eq. 3 by hand. unit: with cosines, not dot products. own: with j = i in the sum."""
    if unit:
        first, second = normalize(first, dim=1), normalize(second, dim=1)
    similarity = first @ first.T / temperature
    negatives = similarity if own else similarity.masked_fill(torch.eye(len(first), dtype=torch.bool), -torch.inf)
    return (negatives.logsumexp(dim=1) - (first * second).sum(dim=1) / temperature).mean()


def _standard(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    return losses.simcse(first, second, temperature, positive_in_denominator=True)


def _positive_beside(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    return losses.info_nce(first, second, temperature, positive_in_denominator=True, negatives=first)


FIRST = {
    "both passes are equal: dropout was off. The tower comes in evaluation mode; call tower.train() first": {
        "dropout": False
    },
    "the loss compares a pass with itself: the tower has to see the titles twice": {
        "loss_fn": lambda first, _, temperature: losses.simcse(first, first, temperature)
    },
    "s is the cosine: the vectors are not brought to unit length": {"loss_fn": partial(_eq_3, unit=False)},
    "the positive stands among the negatives: that is the standard form; Eq. 3 leaves it out of the sum": {
        "loss_fn": _standard
    },
    "the positive stands among the negatives of the first pass; Eq. 3 leaves it out of the sum": {
        "loss_fn": _positive_beside
    },
    "j != i: leave the diagonal out, a title is no negative of itself": {"loss_fn": partial(_eq_3, own=True)},
    "the negatives t_j of Eq. 3 are of the first pass; yours are of the second": {"loss_fn": losses.info_nce},
    "temperature has no effect": {"loss_fn": lambda first, second, _: losses.simcse(first, second, 1.0)},
}
LATER = {
    PILED_UP: {"clear": False},
    "one of the two passes is detached: the positive has to move too": {
        "loss_fn": lambda first, second, temperature: losses.simcse(first, second.detach(), temperature)
    },
}


def _loop(answer: Callable[[nn.Module, list[Batch], float, float], list[float]]) -> str:
    tower, batches = text_tower(), [tokens for tokens, _ in ten_batches()]
    found = trace(answer, tower, batches, 0.1, 2e-3)
    check_trained(found, batches, {"": "the tower", "backbone.": "the encoder", "projection.": "the projection"})
    ways = [{"passes": passes} for passes in (_two_calls, _second_first, _one_call, _adjacent)]
    compare_loops(found, train_titles, ways, FIRST, LATER, tower, batches, 0.1, 2e-3)
    return "ten steps from the same weights give the same losses and the same weights: that is all of SimCSE."


def _own_loss(answer: Callable[[Tensor, Tensor], Any]) -> str:
    first, second = _batch(12, 2)
    loss = call(answer, first, second)
    if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad is False):
        raise Hint("return one number as a tensor, such as losses.alignment(first, second) does")
    swapped = torch.roll(first, 1, dims=0)
    if call(answer, first, swapped) <= call(answer, first, first):
        raise Hint("nothing draws the two passes of a title together: it is no worse when they lie apart")
    ends = []
    for seed in (1, 2):
        path, _ = train_on_circle(partial(call, answer), seed=seed)
        spread = float(losses.uniformity(path[-1]))
        if not math.isfinite(spread):
            raise Hint("the loss became NaN as it trained; take logarithms and roots of numbers above 0 only")
        if spread > -1.5:
            raise Hint(
                f"trained on the toy, uniformity ends at {spread:.2f}; evenly spread points have -1.76. Nothing, or "
                "too little, pushes the titles apart"
            )
        ends.append(spread)
    return f"pairs stay together and nothing collapses: uniformity ends at {max(ends):.2f}. The softmax is not needed."


CHECKS = {"3.1": _alignment, "3.2": _loop, "3.3": _own_loss}
