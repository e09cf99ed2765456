"""What the checks of the training loops (3.2, 4.2 and 7.2) share: small models and batches, what a loop did to a model,
and by which known mistake it differs from the reference."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import timm
import torch
from lesson_tools import Hint, call
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import BertConfig, BertForSequenceClassification, BertModel

from icssl_lib.encoders import Batch, TextTower, Towers, VisionTower

BRANDS, COLOURS = ("alma", "bora", "cira", "dena", "eris"), ("rose", "coral", "amber", "mint")
KINDS = ("lipstick", "nail lacquer", "hand cream", "eau de toilette")  # the classes of lesson 7
TITLES = [" ".join(words) for words in product(BRANDS, COLOURS, KINDS)]
WORDS = ["", *sorted(set(" ".join(TITLES).split()))]  # the first is padding
SHAPE = BertConfig(
    vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=8, num_labels=len(KINDS),
)  # fmt: skip

PILED_UP = "the first step is right, then gradients pile up: without zero_grad() each step adds those of all before it"

# --- small models, the same at each call, and batches of ten steps ---


def text_tower() -> TextTower:
    """A BERT of one layer with dropout, and a projection."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextTower(BertModel(SHAPE), "mean", projection_dim=16, depth=2)


def two_towers() -> Towers:
    """The text tower, and a ViT of one block with dropout for pictures of 32 x 32 pixels."""
    shape = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 0, "proj_drop_rate": 0.1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Towers(text_tower(), VisionTower(timm.create_model("vit_tiny_patch16_224", **shape), 16, 2))


def classifier() -> nn.Module:
    """A BERT of one layer with dropout, and a last layer of four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(SHAPE)


def ten_batches(size: int = 8) -> list[tuple[Batch, Tensor]]:
    """Tokens (N, T) of different titles, and the rows (N,) of `TITLES` at which these stand."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(len(TITLES), generator=generator)[:size] for _ in range(10)]
    return [(_tokens([TITLES[i] for i in batch]), batch) for batch in rows]


def _tokens(titles: list[str]) -> Batch:
    ids = [torch.tensor([WORDS.index(word) for word in title.split()]) for title in titles]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"input_ids": padded, "attention_mask": (padded > 0).long()}


# --- what a loop did ---


@dataclass
class Trace:
    losses: list[float]  # that it returned
    change: dict[str, Tensor]  # of each weight, from the first step to the last
    reached: set[str]  # the weights that a gradient reached
    steps: int  # calls of an optimizer's step


def trace(loop: Callable, model: nn.Module, batches: list, *options: Any) -> Trace:
    """Run ``loop(model, batches, *options)`` on a copy of the model in evaluation mode. The random state is the same at
    each call, and left as it was.

    Raises: Hint: no gradient reaches the loss, or it returns no list of one number for each batch.
    """
    model, steps, reached = copy.deepcopy(model).eval(), [], set()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    counted = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses = _numbers(call(loop, model, batches, *options), len(batches))
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise Hint("no gradient reaches the model: something between it and the loss cuts the graph, such as "
                       "detach(), torch.no_grad(), .item() or NumPy") from None  # fmt: skip
        raise
    finally:
        counted.remove()
    change = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    return Trace(losses, change, reached, len(steps))


def _numbers(returned: Any, n: int) -> list[float]:
    try:
        values = list(returned)
        numbers = [float(value.detach() if isinstance(value, Tensor) else value) for value in values]
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"a list of {n} losses was expected, one for each batch; this is {returned!r:.60}") from None
    if any(isinstance(value, Tensor) and value.requires_grad for value in values):
        raise Hint("append loss.item(), the number: a tensor keeps the graph of its step in memory")
    if len(numbers) != n:
        raise Hint(f"{n} batches give {n} losses; yours are {len(numbers)}")
    return numbers


def check_trained(found: Trace, batches: list, parts: dict[str, str]) -> None:
    """Raises: Hint: a part of the model did not train.

    Args:
        parts: beginning of its weights' names to what the part is called.
    """
    if found.steps == 0:
        raise Hint("the weights are where they were: backward() only computes gradients; step() was never called")
    if found.steps != len(batches):
        raise Hint(f"step() was called {found.steps} times for {len(batches)} batches; each needs one, in the loop")
    if not found.reached:
        raise Hint("no weight has a gradient: loss.backward() was never called")
    if not any(change.any() for change in found.change.values()):
        raise Hint("the gradients were gone when the step came: zero_grad() belongs before backward() or after step()")
    for begin, part in parts.items():
        if not any(name.startswith(begin) for name in found.reached):
            raise Hint(f"no gradient reaches {part}: it is cut off by detach(), torch.no_grad() or requires_grad")
        if not any(change.any() for name, change in found.change.items() if name.startswith(begin)):
            raise Hint(f"gradients reach {part}, but it stays as it was: the optimizer does not hold its weights")


def compare_loops(
    found: Trace, reference: Callable, ways: list[dict], first: dict[str, dict], later: dict[str, dict],
    model: nn.Module, batches: list, *options: Any,
) -> None:  # fmt: skip
    """Raise the Hint that fits a loop which is not the reference.

    Args:
        found: what the student's loop did to ``model``.
        reference: a loop whose keyword arguments make mistakes.
        ways: keyword arguments that are as right as none: each draws its dropout in another order.
        first: hint to the arguments of a mistake that the first loss gives away.
        later: hint to those of a mistake that begins with the second step.
    """

    def run(n: int, way: dict, mistake: dict) -> Trace:
        return trace(lambda *given: reference(*given, **way | mistake), model, batches[:n], *options)

    right = []
    for way in ways:
        right.append(run(len(batches), way, {}))
        if _same(found, right[-1]):
            return
    start = found.losses[0]
    if not any(_close(start, known.losses[0]) for known in right):
        for (hint, mistake), way in product(first.items(), ways):
            if _close(start, run(1, way, mistake).losses[0]):
                raise Hint(hint)
        raise Hint(
            f"the first loss is {start:.4f}, {right[0].losses[0]:.4f} was expected. No step has been taken yet, so "
            "look at what leads to the loss"
        )
    for (hint, mistake), way in product(later.items(), ways):
        if _same(found, run(len(batches), way, mistake)):
            raise Hint(hint)
    raise Hint(
        f"the first loss is right, but not what becomes of it: the last is {found.losses[-1]:.4f}, "
        f"{right[0].losses[-1]:.4f} was expected. Look at backward, at the step and at the optimizer"
    )


def _close(loss: float, known: float) -> bool:
    return math.isclose(loss, known, rel_tol=1e-4, abs_tol=1e-5)


def _same(found: Trace, known: Trace) -> bool:
    """Equal losses, and weights that moved alike. Adam moves a weight whose gradient is 0 by the sign of its rounding,
    such as the bias of an attention's keys, so that another way to write the loss moves a few weights otherwise."""
    ours, theirs = (torch.cat([change.flatten() for change in x.change.values()]) for x in (found, known))
    alike = np.allclose(found.losses, known.losses, rtol=1e-3, atol=1e-3)
    return alike and bool((ours - theirs).norm() < 0.2 * theirs.norm())
