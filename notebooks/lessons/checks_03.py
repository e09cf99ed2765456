"""Lesson 3, SimCSE: a toy whose titles move on the circle as an encoder trains, and the checks of the exercises."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from lesson_tools import Hint, call, compare
from matplotlib.animation import FuncAnimation
from torch import Tensor, nn
from torch.nn.functional import normalize

from icssl_lib import losses

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


def moving_points(paths: dict[str, list[Tensor]]) -> FuncAnimation:
    """The toy's titles on their way over the circle, a panel per path; topics differ by marker and lightness.

    Args:
        paths: title of the panel to what `train_on_circle` returns, all of one length.
    """
    fig, axes = plt.subplots(1, len(paths), figsize=(2.2 * len(paths), 2.7), squeeze=False, layout="constrained")
    markers = []
    for ax, path in zip(axes[0], paths.values(), strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.7"))
        ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
        ax.axis("off")
        looks = zip(sns.color_palette("colorblind"), "os^", strict=False)
        markers.append(
            [
                ax.plot(*path[0][topic == TOPICS].T, marker, color=color, markeredgecolor="black", ms=8, alpha=0.8)[0]
                for topic, (color, marker) in enumerate(looks)
            ]
        )

    def draw(frame: int) -> None:
        for ax, (name, path), topics in zip(axes[0], paths.items(), markers, strict=True):
            uniformity = losses.uniformity(path[frame])
            ax.set_title(f"{name}\nstep {10 * frame}: uniformity {uniformity:.2f}", fontsize=9)
            for topic, points in enumerate(topics):
                points.set_data(*path[frame][topic == TOPICS].T)

    return FuncAnimation(fig, draw, frames=len(next(iter(paths.values()))))


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


class _Recorded(nn.Module):
    """An encoder whose passes are known: its first pass of the titles gives ``first``, any later one ``second``."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.passes, self.modes = [first, second], []

    def forward(self, titles: Tensor) -> Tensor:
        self.modes.append(self.training)
        first, second = self.passes
        if len(titles) == 2 * len(first):  # both passes in one call
            return torch.cat([first, second])
        return first if len(self.modes) == 1 else second


def _simcse(answer: Callable[[nn.Module, Tensor, float], Any]) -> str:
    first, second = _batch()
    first.requires_grad_()
    titles = torch.zeros(len(first), 3)
    encoder = _Recorded(first, second).eval()
    result = call(answer, encoder, titles, 0.5)
    if not encoder.modes:
        raise Hint("the encoder was not called: encoder(titles) is one pass")
    if not all(encoder.modes):
        raise Hint("dropout was off, so both passes are equal; call encoder.train() first")
    right = losses.simcse(first, second, 0.5)
    similarity = normalize(first, dim=1) @ normalize(first, dim=1).T / 0.5
    positive = (normalize(first, dim=1) * normalize(second, dim=1)).sum(dim=1) / 0.5
    mistakes = {
        "both arguments are the same pass: the encoder has to see the titles twice": losses.simcse(first, first, 0.5),
        "the sign is turned: the loss is minus the logarithm": -right,
        "that is the sum over the batch; take the mean": right * len(first),
        "temperature has no effect": losses.simcse(first, second, 1.0),
        "the negatives t_j of Eq. 3 are of the first pass; yours are of the second": losses.info_nce(
            first, second, 0.5
        ),
        "j != i: leave the diagonal out of the sum, a title is no negative of itself": (
            similarity.logsumexp(dim=1) - positive
        ).mean(),
        "that is the standard form; Eq. 3 leaves the positive out of the sum": losses.simcse(
            first, second, 0.5, positive_in_denominator=True
        ),
    }
    compare(result, right, mistakes)
    if not (isinstance(result, Tensor) and result.requires_grad):
        raise Hint("the number is right, but no gradient can flow: stay with tensors (no .item(), no NumPy)")
    return "dropout on, two passes of the same titles, and Eq. 3 between them: that is all of SimCSE."


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


CHECKS = {"3.1": _alignment, "3.2": _simcse, "3.3": _own_loss}
