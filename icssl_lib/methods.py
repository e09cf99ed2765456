"""The study's methods as data: one entry here, and one function for its loss, add a method.

Free of torch at import, so that the DAG and the figures read the registry at no cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from icssl_lib.adapt import Batch, Towers
    from icssl_lib.config import AdaptConfig, Study


def simcse(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Eq. 3: two dropout passes of the same titles, as one batch in which each title stands twice in a row."""
    from icssl_lib import losses

    both = towers.text(**{name: x.repeat_interleave(2, dim=0) for name, x in batch.tokens.items()})
    return losses.simcse(
        both[0::2],
        both[1::2],
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


def mlm(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Masked language modelling goes on, on the task's titles (Gururangan et al., 2020): mean cross-entropy, in nats,
    of 15% of the batch's words (Devlin et al., 2019); 0 where none was chosen."""
    nats, words = towers.words(**batch.tokens).unbind(dim=1)  # (N,) each
    return nats.sum() / words.sum().clamp(min=1)


def convirt_simcse(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Both contrasts: L(ConVIRT) + simcse_weight * L(SimCSE)."""
    return convirt(towers, batch, config) + config.simcse_weight * simcse(towers, batch, config)


def convirt_mlm(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Pictures, without forgetting words: L(ConVIRT) + mlm_weight * L(MLM)."""
    return convirt(towers, batch, config) + config.mlm_weight * mlm(towers, batch, config)


def convirt_sigmoid(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Titles against their pictures, each pair judged alone (Zhai et al., 2023)."""
    from icssl_lib import losses

    text, image = towers.text(**batch.tokens), towers.vision(batch.images)
    return losses.sigmoid(text, image, config.temperature, config.sigmoid_bias, groups=batch.groups)


@dataclass(frozen=True)
class Method:
    """How the text encoder is adapted, and what classifies with it."""

    title: str  # for people
    loss: "Callable[[Towers, Batch, AdaptConfig], Tensor] | None" = None  # None: the encoder as it comes
    # shuffled: of other products, drawn once per seed; neighbours: now and then of the product that looks most alike
    pictures: Literal["none", "own", "shuffled", "neighbours"] = "none"
    classifier: Literal["finetune", "tfidf", "knn", "image", "late", "joint", "distilled"] = "finetune"
    encoder: str | None = None  # another method, with whose encoder (and vision tower, if it looks) this one classifies
    teacher: Literal["finetune", "late", "joint"] = "late"  # of a classifier that is distilled
    names: bool = False  # each label's name is one more title of its own, as `finetune.label_names`
    lexical: bool = False  # TF-IDF of the same titles answers with it: the geometric mean of both
    words: bool = False  # the loss guesses hidden words
    passes: int = 1  # of a title through the text encoder in a step of adaptation

    @property
    def adapts(self) -> bool:
        return self.loss is not None

    @property
    def recipe(self) -> tuple[str, ...]:
        """What came to a method after it had been in use: a run from before is another method's."""
        return ("lexical",) if self.lexical else ()

    @property
    def looks(self) -> bool:
        """Whether the classifier is shown pictures in training: its own, or its teacher."""
        kind = self.teacher if self.classifier == "distilled" else self.classifier
        return kind in ("image", "late", "joint")


def _recommended(title: str, encoder: str | None) -> Method:
    """ConVIRT's encoder, labels' names as titles, a title classifier as its own teacher on the SSL part, and TF-IDF."""
    return Method(title, classifier="distilled", encoder=encoder, teacher="finetune", names=True, lexical=True)


METHODS: dict[str, Method] = {
    "origin": Method("BERT (origin)"),
    "simcse": Method("SimCSE", simcse, passes=2),
    "convirt": Method("ConVIRT", convirt, pictures="own"),
    "convirt_shuffled": Method("ConVIRT, shuffled pairs (control)", convirt, pictures="shuffled"),
    "tfidf": Method("TF-IDF + logistic regression", classifier="tfidf"),
    "mlm": Method("Masked LM", mlm, words=True),
    "convirt_simcse": Method("ConVIRT + SimCSE", convirt_simcse, pictures="own", passes=3),
    "convirt_mlm": Method("ConVIRT + masked LM", convirt_mlm, pictures="own", words=True, passes=2),
    "knn": Method("k nearest (origin)", classifier="knn"),
    "knn_convirt": Method("k nearest (ConVIRT)", classifier="knn", encoder="convirt"),
    "image": Method("Picture alone", classifier="image"),
    "dual_late": Method("Title + picture (late)", classifier="late"),
    "dual_joint": Method("Title + picture (joint)", classifier="joint"),
    "dual_convirt": Method("Title + picture (late, ConVIRT)", classifier="late", encoder="convirt"),
    "convirt_sigmoid": Method("ConVIRT, sigmoid loss", convirt_sigmoid, pictures="own"),
    "convirt_neighbours": Method("ConVIRT, neighbours as positives", convirt, pictures="neighbours"),
    "self_trained": Method("ConVIRT, self-training", classifier="distilled", encoder="convirt", teacher="finetune"),
    "distilled": Method("ConVIRT, distilled from title + picture", classifier="distilled", encoder="convirt"),
    "self_trained_names": Method(
        "ConVIRT, names, self-training", classifier="distilled", encoder="convirt", teacher="finetune", names=True
    ),
    "recommended": _recommended("Recommended", "convirt"),
    "recommended_shuffled": _recommended("Recommended, shuffled pairs (control)", "convirt_shuffled"),
    "recommended_origin": _recommended("Recommended, without pictures", None),
}


def entry_of(study: "Study", method: str) -> Method:
    """The registry's entry of a method, or of the method that a variant of ``study`` varies."""
    return METHODS[study.variants[method].of if method in study.variants else method]


def adapted_by(study: "Study", method: str) -> str | None:
    """The method or variant whose adaptation makes the encoder that ``method`` classifies with; None: as it comes.

    A variant that changes nothing but fine-tuning takes the encoder of the method that it varies.
    """
    variant = study.variants.get(method)
    if variant and not variant.settings.keys() & {"text", "vision", "adapt"}:
        return adapted_by(study, variant.of)
    entry = entry_of(study, method)
    return method if entry.adapts else entry.encoder


def trainings(study: "Study", method: str) -> dict[str, tuple]:
    """What is trained for the method's classifier on one data set, seed and fraction: role ("finetune", "image",
    "joint", "student") and all of the study that it follows from. Where these are equal, so are the weights."""
    entry, own, made_by = entry_of(study, method), study.of(method), adapted_by(study, method)
    unused = {"label_names", "neighbours", "keep_classifiers"}  # the first stands in `titles`
    settings = own.text.model_dump_json(), own.finetune.model_dump_json(exclude=unused)
    titles = made_by, entry.names or own.finetune.label_names, *settings
    pictures = made_by, own.vision.model_dump_json(), *settings
    parts = {"finetune": titles, "image": pictures, "joint": (*titles, *pictures)}

    def of(kind: str) -> dict[str, tuple]:
        return {part: (part, *parts[part]) for part in (["finetune", "image"] if kind == "late" else [kind])}

    if entry.classifier in ("tfidf", "knn"):
        return {}
    if entry.classifier != "distilled":
        return of(entry.classifier)
    return of(entry.teacher) | {"student": ("student", *of(entry.teacher).values(), *titles)}


def trained_alike(study: "Study", method: str) -> dict[str, list[str]]:
    """Role of each of the method's `trainings` that others of the study have too, and all methods that have it, in the
    study's order: the first trains it, the others read its weights. Empty where the method shares nothing."""
    of_each = {other: trainings(study, other).values() for other in study.methods}
    users = {
        role: [other for other, theirs in of_each.items() if training in theirs]
        for role, training in trainings(study, method).items()
    }
    return {role: found for role, found in users.items() if set(found) - {method}}
