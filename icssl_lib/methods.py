"""The study's methods as data: one entry here, and one function for its loss, add a method.

Free of torch at import, which saves the DAG and the figures some seconds; so a loss imports `losses` itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from icssl_lib.config import AdaptConfig, Study
    from icssl_lib.encoders import Batch, Towers


def tokens_of(batch: "Batch") -> "Batch":
    """What a text encoder reads of a batch: input_ids and attention_mask, (N, T) each."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def simcse(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Eq. 3. The two dropout passes of a title are adjacent rows, so a batch can be split at any even row."""
    from icssl_lib import losses

    both = towers.text(**{name: x.repeat_interleave(2, dim=0) for name, x in tokens_of(batch).items()})  # (2N, D)
    form = {"positive_in_denominator": config.positive_in_denominator, "groups": batch.get("groups")}
    return losses.simcse(both[0::2], both[1::2], config.temperature, **form)


def convirt(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Eqs. 6-8: titles against their pictures."""
    from icssl_lib import losses

    text, image = towers.text(**tokens_of(batch)), towers.vision(batch["images"])  # (N, D) each
    form = {"positive_in_denominator": config.positive_in_denominator, "groups": batch.get("groups")}
    return losses.convirt(text, image, config.temperature, config.alpha, **form)


def mlm(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Masked language modelling goes on, on the task's titles (Gururangan et al., 2020): mean cross-entropy, in nats,
    of 15% of the batch's words (Devlin et al., 2019); 0 where none was chosen."""
    nats, words = towers.words(**tokens_of(batch)).unbind(dim=1)  # (N,) each
    return nats.sum() / words.sum().clamp(min=1)


def convirt_sigmoid(towers: "Towers", batch: "Batch", config: "AdaptConfig") -> "Tensor":
    """Titles against their pictures, each pair judged alone; scale and bias are learnt too (Zhai et al., 2023)."""
    from icssl_lib import losses

    text, image = towers.text(**tokens_of(batch)), towers.vision(batch["images"])
    scale, bias = towers.scale(batch["input_ids"]).unbind(dim=1)  # (N,) each
    return losses.sigmoid(text, image, scale, bias, batch.get("groups"))


@dataclass(frozen=True)
class Method:
    """How the text encoder is adapted, and what classifies with it."""

    title: str  # for people
    loss: "Callable[[Towers, Batch, AdaptConfig], Tensor] | None" = None  # None: the encoder as it comes
    pictures: Literal["none", "own", "shuffled"] = "none"  # shuffled: of other products, drawn once per seed
    classifier: Literal["finetune", "recommended", "frozen", "self_taught", "labelled", "oracle"] = "finetune"
    features: tuple[str, ...] = ()  # what a classifier of frozen features, or a teacher, reads: `baselines.FEATURES`
    after: str | None = None  # another method, from whose encoder of the same seed adaptation starts
    encoder: str | None = None  # another method, whose encoder (and vision tower) this one classifies with
    names: bool = False  # each label's name is one more title of its own, as `finetune.label_names`
    words: bool = False  # the loss guesses hidden words
    scaled: bool = False  # the loss learns a scale and a bias of its cosines

    @property
    def adapts(self) -> bool:
        return self.loss is not None

    @property
    def uses_images(self) -> bool:
        return any(name.startswith("picture") for name in self.features)

    @property
    def reads_encoder(self) -> bool:
        return self.classifier in ("finetune", "recommended") or "title" in self.features


_WORDS = ("words", "ngrams")
_NGRAMS, _PROBE, _BOTH = ({"classifier": "frozen", "features": f} for f in (_WORDS, ("title",), (*_WORDS, "title")))
_TAUGHT = {**_BOTH, "classifier": "self_taught", "encoder": "convirt", "names": True}
_SEEING = {"features": (*_WORDS, "title", "picture")}
_RECOMMENDED = {"classifier": "recommended", "names": True}
_SHUFFLED = {"encoder": "convirt_shuffled", "features": ("picture_shuffled",)}

METHODS: dict[str, Method] = {
    "origin": Method("BERT (origin)"),
    "simcse": Method("SimCSE", simcse),
    "convirt": Method("ConVIRT", convirt, pictures="own"),
    "convirt_shuffled": Method("ConVIRT, shuffled pairs (control)", convirt, pictures="shuffled"),
    "origin_names": Method("BERT (origin), names", names=True),
    "convirt_names": Method("ConVIRT, names", encoder="convirt", names=True),
    "tfidf": Method("TF-IDF", classifier="frozen", features=("words",)),
    "ngrams": Method("TF-IDF, n-grams", **_NGRAMS),
    "ngrams_names": Method("TF-IDF, n-grams, names", names=True, **_NGRAMS),
    "probe": Method("Frozen origin", **_PROBE),
    "probe_names": Method("Frozen origin, names", names=True, **_PROBE),
    "probe_convirt": Method("Frozen ConVIRT", encoder="convirt", **_PROBE),
    "probe_convirt_names": Method("Frozen ConVIRT, names", encoder="convirt", names=True, **_PROBE),
    "probe_ngrams": Method("Frozen ConVIRT + TF-IDF, names", encoder="convirt", names=True, **_BOTH),
    "taught": Method("Frozen ConVIRT + TF-IDF, names, self-taught", **_TAUGHT),
    "taught_picture": Method("Self-taught, + picture at inference", **_TAUGHT | _SEEING),
    "mlm": Method("Masked LM", mlm, words=True),
    "image": Method("Picture alone", classifier="frozen", features=("picture",)),
    "labelled": Method("Ceiling: the class has a label", classifier="labelled"),
    "oracle": Method("Ceiling: title oracle", classifier="oracle", features=_WORDS),
    "convirt_sigmoid": Method("ConVIRT, sigmoid loss", convirt_sigmoid, pictures="own", scaled=True),
    "recommended": Method("Recommended", encoder="convirt", features=("picture",), **_RECOMMENDED),
    "recommended_shuffled": Method("Recommended, shuffled pairs (control)", **_RECOMMENDED | _SHUFFLED),
    "recommended_origin": Method("Recommended, without pictures", **_RECOMMENDED),
    "mlm_simcse": Method("Masked LM, then SimCSE", simcse, after="mlm"),  # Gururangan et al. (2020): TAPT
}


def entry_of(study: "Study", method: str) -> Method:
    """The registry's entry of a method, or of the method that a variant of ``study`` varies."""
    return METHODS[study.variants[method].of if method in study.variants else method]


def adapted_by(study: "Study", method: str) -> str | None:
    """The method or variant whose adaptation makes the encoder that ``method`` classifies with; None: as it comes. A
    variant that changes nothing but fine-tuning takes the encoder of the method that it varies."""
    variant = study.variants.get(method)
    if variant and not variant.settings.keys() & {"text", "vision", "adapt"}:
        return adapted_by(study, variant.of)
    entry = entry_of(study, method)
    return method if entry.adapts else entry.encoder
