"""Checks of lesson 4, ConVIRT: both directions of the loss, the training loop, recall."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lesson_tools import Hint, call, compare
from loops import PILED_UP, TITLES, check_trained, compare_loops, ten_batches, trace, two_towers
from torch import Tensor

from icssl_lib import losses
from icssl_lib.encoders import Batch, Towers


def both_directions(answer: Any) -> str:
    """4.1: text, image (N, D), temperature, alpha -> Eq. 8."""
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(6, 4, generator=generator) for _ in range(2))
    forward, backward = losses.info_nce(text, image, 0.2), losses.info_nce(image, text, 0.2)
    for alpha in (0.75, 0.1):
        mistakes = {
            "alpha weighs text to image; you gave it to image to text": (1 - alpha) * forward + alpha * backward,
            "alpha has no effect: that is the plain mean of both directions": (forward + backward) / 2,
            "that is the direction text to image alone": forward,
            "that is the direction image to text alone": backward,
            "the two weights sum to 1: the second is 1 - alpha": alpha * forward + alpha * backward,
            "both directions are summed without their weights": forward + backward,
            "the weight 1 - alpha is missing in the second direction": alpha * forward + backward,
            "that is the standard form; Eqs. 6 and 7 leave the positive out": losses.convirt(
                text, image, 0.2, alpha, positive_in_denominator=True
            ),
        }
        compare(call(answer, text, image, 0.2, alpha), losses.convirt(text, image, 0.2, alpha), mistakes)
    return "alpha from title to picture, 1 - alpha from picture to title."


def train_towers(
    towers: Towers, batches: list[tuple[Batch, Tensor]], pictures: Tensor,
    temperature: float, alpha: float, lr: float, *,
    loss_fn: Callable = losses.convirt, text: bool = True, vision: bool = True,
    picture_first: bool = False, clear: bool = True,
) -> list[float]:  # fmt: skip
    """The loop of exercise 4.2; its keyword arguments make others of it, a right one (``picture_first``) and mistakes:
    ``text`` and ``vision`` are whether that tower is in training mode."""
    optimizer = torch.optim.Adam(towers.parameters(), lr=lr)
    towers.text.train(text)
    towers.vision.train(vision)
    history = []
    for tokens, rows in batches:
        if clear:
            optimizer.zero_grad()
        if picture_first:
            image, title = towers.vision(pictures[rows]), towers.text(**tokens)
        else:
            title, image = towers.text(**tokens), towers.vision(pictures[rows])
        loss = loss_fn(title, image, temperature, alpha)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def _dot_products(text: Tensor, image: Tensor, temperature: float, alpha: float) -> Tensor:
    similarity, own = text @ image.T / temperature, torch.eye(len(text), dtype=torch.bool)
    others = similarity.masked_fill(own, -torch.inf)
    there, back = (x.logsumexp(dim=1) - similarity.diagonal() for x in (others, others.T))
    return (alpha * there + (1 - alpha) * back).mean()


def _detached_keys(text: Tensor, image: Tensor, temperature: float, alpha: float) -> Tensor:
    """As if the keys, among which a query chooses, were constants."""
    there = losses.info_nce(text, image.detach(), temperature)
    return alpha * there + (1 - alpha) * losses.info_nce(image, text.detach(), temperature)


def _text_alone(text: Tensor, image: Tensor, temperature: float, alpha: float) -> Tensor:
    return losses.info_nce(text, image, temperature)


def _image_alone(text: Tensor, image: Tensor, temperature: float, alpha: float) -> Tensor:
    return losses.info_nce(image, text, temperature)


def _turned(text: Tensor, image: Tensor, temperature: float, alpha: float) -> Tensor:
    return losses.convirt(image, text, temperature, alpha)


PARTS = {
    "": "the towers", "text.": "the text tower", "vision.": "the vision tower",
    "text.backbone.": "the encoder of the text tower", "text.projection.": "the projection of the text tower",
    "vision.backbone.": "the encoder of the vision tower", "vision.projection.": "the projection of the vision tower",
}  # fmt: skip
FIRST = {
    "dropout was off: both towers come in evaluation mode; call towers.train() first": {"text": False, "vision": False},
    "the vision tower stayed in evaluation mode, so its dropout was off": {"vision": False},
    "the text tower stayed in evaluation mode, so its dropout was off": {"text": False},
    "that is the direction text to image alone; Eq. 8 has two": {"loss_fn": _text_alone},
    "that is the direction image to text alone; Eq. 8 has two": {"loss_fn": _image_alone},
    "alpha weighs text to image; you gave it to image to text": {"loss_fn": _turned},
    "s is the cosine: the vectors are not brought to unit length": {"loss_fn": _dot_products},
    "the positive stands among the negatives: that is the standard form; Eqs. 6 and 7 leave it out of the sum": {
        "loss_fn": partial(losses.convirt, positive_in_denominator=True)
    },
}
LATER = {
    PILED_UP: {"clear": False},
    "in each direction the keys are detached: both sides of a pair have to move": {"loss_fn": _detached_keys},
}


def trained(answer: Callable) -> str:
    """4.2: towers, batches of tokens and the rows of their pictures, temperature, alpha, lr -> losses."""
    towers, seen = two_towers(), []
    pixels = torch.randint(256, (len(TITLES), 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batches, options = ten_batches(), (pixels, 0.1, 0.75, 2e-3)
    towers.vision.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = trace(answer, towers, batches, *options)
    if seen and not torch.equal(seen[0].float(), pixels[batches[0][1]].float()):
        raise Hint("picture i is not that of title i: `rows` says where in `pictures` each title has its own")
    check_trained(found, batches, PARTS)
    ways = [{"picture_first": first} for first in (False, True)]
    compare_loops(found, train_towers, ways, FIRST, LATER, towers, batches, *options)
    return "ten steps from the same weights give the same losses, and both towers move as they should."


def recall(answer: Any) -> str:
    """4.3: text, image (N, D), k -> share of titles whose picture is among the k nearest."""
    axes = torch.eye(5)
    for image, k, expected, hint in (
        (axes, 1, 1, "when each title is equal to its picture, recall at 1 is 1"),
        (axes.roll(1, 0), 1, 0, "when each title is equal to another product's picture, recall at 1 is 0"),
        (axes.roll(1, 0), 5, 1, "among all 5 pictures the own one is found for certain"),
    ):
        if abs(float(call(answer, axes, image, k)) - expected) > 1e-6:
            raise Hint(f"{hint}; yours is {float(answer(axes, image, k)):.2f}")
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(60, 8, generator=generator)
    image = (text + 1.5 * torch.randn(60, 8, generator=generator)) * torch.linspace(0.2, 5, 60)[:, None]
    for k in (1, 5):
        mistakes = {
            "the longest pictures win: s is the cosine, divide each row by its length": _recall(text @ image.T, k),
            "that is picture to title: each title (row) ranks the pictures": _recall(_cosine(text, image).T, k),
            f"that is recall at {k - 1}: the first rank is 1": _recall(_cosine(text, image), k - 1),
            f"that is recall at {k + 1}: the first rank is 1": _recall(_cosine(text, image), k + 1),
            "that is a count; divide it by the number of titles": 60 * _recall(_cosine(text, image), k),
        }
        compare(call(answer, text, image, k), _recall(_cosine(text, image), k), mistakes)
    return "title to picture, by cosine, on random pairs and on pairs whose recall is known."


def _cosine(text: Tensor, image: Tensor) -> Tensor:
    return torch.nn.functional.normalize(text, dim=1) @ torch.nn.functional.normalize(image, dim=1).T


def _recall(similarity: Tensor, k: int) -> float:
    """Share of rows (N, N) whose diagonal is among the k largest."""
    rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1) + 1
    return (rank <= k).float().mean().item()


CHECKS = {"4.1": both_directions, "4.2": trained, "4.3": recall}
