"""Checks of lesson 7: cores for a stream of requests, two inputs fused, a person asked only in doubt."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from lesson_tools import Hint, call


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


def _fuse(answer: Any) -> str:
    """7.2: (N, H) and (N, F), each row at length 1, side by side: (N, H + F); a row of zeros stays."""
    rng = np.random.default_rng(1)
    text, picture = rng.normal(size=(5, 3)), 40 * rng.normal(size=(5, 4))
    picture[2] = 0  # a product without a picture
    fused = np.asarray(call(answer, text.copy(), picture.copy()), dtype=float)
    if fused.shape == (10, 3) or fused.shape[:1] != (5,):
        raise Hint(f"one row for each product was expected, (5, 7); yours is {fused.shape}. Concatenate along axis 1")
    if fused.shape != (5, 7):
        raise Hint(f"text (5, 3) and picture (5, 4) side by side are (5, 7); yours is {fused.shape}")
    if not np.isfinite(fused).all():
        raise Hint(
            "a product without a picture comes as a row of zeros, and 0 / 0 is no number: leave such a row as it is"
        )
    expected = _unit(text), _unit(picture)
    if np.allclose(fused, np.hstack([text, picture])):
        raise Hint(
            "these are the rows as they came: pictures of length 80 drown titles of length 2. Set each to length 1"
        )
    if np.allclose(fused, _unit(np.hstack([text, picture]))):
        raise Hint("the lengths were set after the two were joined; within a row the picture still drowns the title")
    if np.allclose(fused, np.hstack(expected[::-1])):
        raise Hint("the text comes first, then the picture")
    if not np.allclose(fused, np.hstack(expected)):
        raise Hint("divide each row by its own length, the root of the sum of its squares (axis 1)")
    return "each input has the same say, and a product without a picture is judged by its title."


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length == 0, 1, length)


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


CHECKS: dict[str, Callable[[Any], str]] = {"7.1": _cores, "7.2": _fuse, "7.3": _cascade}
