"""The study's methods as data: one entry here, and one function for its loss, add a method.

Free of torch at import, so that the DAG and the figures read the registry at no cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from icssl_lib.adapt import Batch, Towers
    from icssl_lib.config import AdaptConfig


def simcse(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Eq. 3: two dropout passes of the same titles."""
    from icssl_lib import losses

    first, second = towers.text(**batch.tokens), towers.text(**batch.tokens)
    return losses.simcse(
        first,
        second,
        config.temperature,
        positive_in_denominator=config.positive_in_denominator,
        groups=batch.groups,
    )


def convirt(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Eqs. 6-8: titles against their pictures."""
    from icssl_lib import losses

    return losses.convirt(
        towers.text(**batch.tokens),
        towers.vision(batch.images),
        config.temperature,
        config.alpha,
        positive_in_denominator=config.positive_in_denominator,
        groups=batch.groups,
    )


@dataclass(frozen=True)
class Method:
    """How the text encoder is adapted, and what classifies with it."""

    title: str  # for people
    loss: "Callable[[Towers, Batch, AdaptConfig], Tensor] | None" = None  # None: the encoder as it comes
    pictures: Literal["none", "own", "shuffled"] = "none"  # shuffled: of other products, drawn once per seed
    classifier: Literal["finetune", "tfidf"] = "finetune"

    @property
    def adapts(self) -> bool:
        return self.loss is not None


METHODS: dict[str, Method] = {
    "origin": Method("BERT (origin)"),
    "simcse": Method("SimCSE", simcse),
    "convirt": Method("ConVIRT", convirt, pictures="own"),
    "convirt_shuffled": Method("ConVIRT, shuffled pairs (control)", convirt, pictures="shuffled"),
    "tfidf": Method("TF-IDF + logistic regression", classifier="tfidf"),
}
