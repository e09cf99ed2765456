"""Checks of lesson 7: cores for a stream of requests, the fine-tuning loop, a person asked only in doubt."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from lesson_tools import Hint, call
from loops import KINDS, PILED_UP, check_trained, classifier, compare_loops, ten_batches, trace
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from icssl_lib.encoders import Batch


def _cores(answer: Any) -> str:
    """7.1: the least number of cores, each occupied for at most the share ``busy`` of the time."""
    for rate, milliseconds, busy in ((130, 10, 0.3), (250, 7, 0.6), (100, 20, 0.5), (1, 5, 0.5)):
        result, load = call(answer, rate, milliseconds, busy), rate * milliseconds / 1000
        cores, where = math.ceil(load / busy), f"{rate} a second, {milliseconds} ms each, busy {busy}"
        if result == cores:
            continue
        if result >= 500 * cores:
            raise Hint(f"{where}: {result:,.0f} cores? Milliseconds are thousandths of a second")
        if math.isclose(result, load / busy):
            raise Hint(f"{where}: {result:.2f} is right, but cores are whole; round up")
        if result == math.floor(load / busy):
            raise Hint(f"{where}: rounded down, some of the work finds no core; round up")
        if result in (math.ceil(load), math.ceil(load * busy)):
            raise Hint(
                f"{where}: a core gives only the share `busy` of its time, so more of them are needed: divide by it"
            )
        raise Hint(
            f"{where}: your answer is {result}. How many seconds of work arrive each second, and how many of them may "
            "one core take?"
        )
    return "work that arrives, over what one core may take, rounded up."


def train_classifier(
    model: nn.Module, batches: list[tuple[Batch, Tensor]], lr: float, *,
    loss_fn: Callable = cross_entropy, dropout: bool = True, clear: bool = True,
) -> list[float]:  # fmt: skip
    """The loop of exercise 7.2; its keyword arguments make its mistakes."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train(dropout)
    history = []
    for tokens, target in batches:
        if clear:
            optimizer.zero_grad()
        loss = loss_fn(model(**tokens).logits, target)
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


FIRST = {
    "dropout was off: transformers hands a model out in evaluation mode; call model.train() first": {"dropout": False},
    "softmax came twice: cross_entropy takes logits, and turns them into probabilities itself": {
        "loss_fn": lambda scores, target: cross_entropy(scores.softmax(dim=1), target)
    },
    "that is the sum over the batch; take the mean": {"loss_fn": partial(cross_entropy, reduction="sum")},
}
LATER = {
    PILED_UP: {"clear": False},
}


def _finetuned(answer: Callable) -> str:
    """7.2: a classifier, batches of tokens and classes, lr -> losses."""
    model = classifier()
    batches = [(tokens, rows % len(KINDS)) for tokens, rows in ten_batches()]  # a title ends with its kind
    found = trace(answer, model, batches, 1e-2)
    check_trained(found, batches, {"": "the model", "bert.": "the encoder", "classifier.": "the last layer"})
    compare_loops(found, train_classifier, [{}], FIRST, LATER, model, batches, 1e-2)
    return "ten steps from the same weights give the same losses, and encoder and last layer move as they should."


def _cascade(answer: Any) -> str:
    """7.3: the person's labels for the share of products with the least confidence, else the model's."""
    rng = np.random.default_rng(2)
    confidence = rng.permutation(np.linspace(0.55, 0.95, 20))  # all above one half: no threshold is the share
    # objects: an array of short texts would cut longer ones that are written into it
    by_model, by_person = (np.array([f"{who} {i}" for i in range(20)], dtype=object) for who in ("model", "person"))

    def asked(share: float) -> np.ndarray:
        given = by_model.copy(), by_person.copy()
        predicted = np.asarray(call(answer, confidence.copy(), *given, share))
        if (given[0] != by_model).any() or (given[1] != by_person).any():
            raise Hint("your function changes the array that it was given; work on a copy")
        if predicted.shape != (20,):
            raise Hint(f"one prediction for each product was expected, (20,); yours is {predicted.shape}")
        if not ((predicted == by_model) | (predicted == by_person)).all():
            raise Hint("product i has to keep its place: prediction i is by_model[i] or by_person[i]")
        return predicted == by_person

    order = np.argsort(confidence)
    quarter = asked(0.25)
    if quarter.sum() != 5:
        raise Hint(
            f"with share 0.25, a person sees 5 of 20 products; yours shows {quarter.sum()}. "
            "The share counts products; it is no threshold on the confidence"
        )
    if quarter[order[-5:]].all():
        raise Hint("you ask the person where the model is most sure; they help where it is in doubt")
    if not quarter[order[:5]].all():
        raise Hint("the 5 least confident products get the person's label; are they in the order of confidence?")
    for share, count in ((0.0, 0), (1.0, 20)):
        if (found := asked(share).sum()) != count:
            raise Hint(f"with share {share:g}, a person sees {count} of 20; yours shows {found}")
    return "a person sees only the products in doubt, and the share is yours to choose."


CHECKS: dict[str, Callable[[Any], str]] = {"7.1": _cores, "7.2": _finetuned, "7.3": _cascade}
