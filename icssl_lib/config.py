"""One YAML file is one study. Extra keys are refused, with the nearest known name.

Relative paths in a file are relative to that file's folder.
"""

import difflib
import operator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def _stays_text(name: str) -> str:
    """A name is also a cell of results.csv, from which pandas would read some back as a number or as nothing."""
    try:
        float(name)
    except ValueError:
        if name.lower() not in ("na", "none", "null", "true", "false"):
            return name
    raise ValueError("a table would read it back as a number, a truth value or nothing; call it, say, 'shop-...'")


# Names become folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"), AfterValidator(_stays_text)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and remedy."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SyntheticSource(Strict):
    """The embedded catalogue: one procedural genre, the same bytes on every platform."""

    source: Literal["synthetic"]
    genre: Literal["automotive", "beauty", "electronics"]
    products: PositiveInt = 4000
    classes: Annotated[int, Field(ge=2)] = 40
    seed: int = 0


class TableSource(Strict):
    """A CSV, TSV, JSONL or Parquet table (optionally .gz) with pictures in a folder or in a column of bytes."""

    source: Literal["table"]
    table: Path
    title: str = "title"
    label: str = "label"
    id: str | None = None  # None: the row number
    image: str | None = "image"  # a column of paths inside image_folder, or of bytes; None: no pictures
    image_folder: Path | None = None  # None: the table's folder
    missing_image: Literal["drop", "keep"] = "drop"
    min_class_size: PositiveInt = 1  # smaller classes are dropped, and counted
    # Products without a label: theirs are no classes, but their titles and pictures adapt the encoder.
    unlabelled: Literal["ssl", "drop"] = Field("ssl", exclude_if=lambda value: value == "ssl")


# Where the metadata of the three vintages lies, and Amazon's picture servers, past and present
AMAZON_HOSTS = [
    *("snap.stanford.edu", "jmcauley.ucsd.edu", "mcauleylab.ucsd.edu", "datarepo.eng.ucsd.edu", "deepyeti.ucsd.edu"),
    *("m.media-amazon.com", "images-na.ssl-images-amazon.com", "images-eu.ssl-images-amazon.com"),
    *("images-fe.ssl-images-amazon.com", "ecx.images-amazon.com", "g-ecx.images-amazon.com"),
    *("g-images.amazon.com", "images.amazon.com"),
]
Host = Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:[0-9]+)?$")]


class AmazonSource(Strict):
    """One genre of the Amazon review data: a metadata file, and the pictures that it names, fetched.

    How politely it is fetched is no part of what a dataset is: those settings are left out of ``model_dump``, so that
    a changed rate does not make a study run anew.
    """

    source: Literal["amazon"]
    vintage: Literal[2014, 2018, 2023]
    meta: str  # meta_<Genre>.json.gz or .jsonl[.gz]: a path, or an http(s) address to fetch it from
    folder: Path  # where a fetched file and the pictures lie; studies and genres may share one
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of the metadata file
    missing_image: Literal["drop", "keep"] = "drop"
    min_class_size: PositiveInt = 1
    hosts: list[Host] = Field(AMAZON_HOSTS, exclude=True)  # no other is asked, whatever an address or a redirect says
    connections: Annotated[int, Field(ge=1, le=64)] = Field(8, exclude=True)  # at a time, to a host
    requests_per_second: PositiveFloat = Field(20, exclude=True)  # to a host
    timeout: PositiveFloat = Field(30, exclude=True)  # seconds without a byte; a picture may take four times as long
    retries: Annotated[int, Field(ge=0)] = Field(4, exclude=True)
    max_wait: PositiveFloat = Field(120, exclude=True)  # seconds between two tries, whatever Retry-After says
    max_picture_bytes: PositiveInt = Field(16 * 2**20, exclude=True)
    max_file_bytes: PositiveInt = Field(32 * 2**30, exclude=True)

    @property
    def remote(self) -> bool:
        """Whether the metadata file is fetched."""
        return "://" in self.meta

    @model_validator(mode="after")
    def _fetchable(self) -> "AmazonSource":
        if self.remote and not self.meta.startswith(("http://", "https://")):
            raise ValueError(f"meta: {self.meta}: expected a path, or an address that begins with http:// or https://")
        return self


SourceConfig = Annotated[SyntheticSource | TableSource | AmazonSource, Field(discriminator="source")]


class TextConfig(Strict):
    model: str = "pretrained"  # hub name, folder, or "pretrained": what this study's `pretrain` section makes
    pooling: Literal["mean", "cls"] = "mean"
    max_tokens: Annotated[int, Field(ge=4)] = 32


class VisionConfig(Strict):
    model: str = "pretrained"  # a timm name, or "pretrained"
    checkpoint: Path | None = None  # a local .safetensors file for a timm name; None: timm's own weights (hub)
    image_size: Annotated[int, Field(ge=16)] = 224
    frozen: bool = False  # True: features are computed once and only the projection trains
    random: bool = Field(False, exclude_if=operator.not_)  # True: the model without its weights, drawn anew


class AdaptConfig(Strict):
    epochs: PositiveInt = 50
    batch_size: Annotated[int, Field(ge=2)] = 32
    lr: PositiveFloat = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 1e-8
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the steps
    temperature: PositiveFloat = 0.1
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.75
    positive_in_denominator: bool = False  # False: Eqs. 3, 6, 7 as printed; True: InfoNCE
    mask_duplicates: bool = True  # a title that stands twice in a batch is no negative of itself
    projection_dim: PositiveInt = 768
    projection_depth: PositiveInt = 2
    # What came later is left out of ``model_dump`` at its default: no digest of a study without it changes.
    simcse_weight: float = Field(1.0, ge=0, exclude_if=lambda weight: weight == 1)  # in convirt_simcse; ConVIRT's is 1
    mlm_weight: float = Field(1.0, ge=0, exclude_if=lambda weight: weight == 1)  # in convirt_mlm; ConVIRT's is 1
    sigmoid_bias: float = Field(-10.0, exclude_if=lambda bias: bias == -10)  # in convirt_sigmoid: Zhai et al.'s start
    neighbour_share: float = Field(0.5, ge=0, le=1, exclude_if=lambda share: share == 0.5)  # in convirt_neighbours
    ssl_fraction: float = Field(1.0, gt=0, le=1, exclude_if=lambda share: share == 1)  # of the SSL part, at random
    chunk_size: PositiveInt | None = None  # gradient caching: rows through a tower at a time, for batches beyond memory


class FinetuneConfig(Strict):
    epochs: PositiveInt = 30
    min_steps: Annotated[int, Field(ge=0)] = 0  # small fractions go on for more epochs, until so many steps
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 1e-8
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    selection: Literal["last", "best_dev"] = "last"  # which epoch's weights are kept
    neighbours: int = Field(5, ge=1, exclude_if=lambda k: k == 5)  # k of knn
    label_noise: float = Field(0.0, ge=0, lt=1, exclude_if=operator.not_)  # share of Train's labels that are made wrong
    imbalance: Literal["none", "logit_adjusted", "class_balanced", "two_stage"] = Field(
        "none", exclude_if=lambda remedy: remedy == "none"
    )
    label_names: bool = Field(False, exclude_if=operator.not_)  # True: each label's name is one more title of its own
    uda_weight: float = Field(0.0, ge=0, exclude_if=operator.not_)  # of consistency on the SSL part's titles
    head: Literal["transformers", "mean"] = "transformers"  # "mean": linear layer on mean-pooled tokens
    fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = list(FRACTIONS)
    keep_classifiers: list[Annotated[float, Field(gt=0, le=1)]] = [1.0]  # fractions whose weights are saved

    def steps(self, n_train: int) -> tuple[int, int]:
        """Epochs and optimiser steps on ``n_train`` products."""
        per_epoch = -(-n_train // self.batch_size)
        epochs = max(self.epochs, -(-self.min_steps // per_epoch))
        return epochs, epochs * per_epoch

    @model_validator(mode="after")
    def _exportable(self) -> "FinetuneConfig":
        if self.head == "mean" and self.keep_classifiers:
            raise ValueError("head: mean is no transformers classifier and cannot be kept; set keep_classifiers: []")
        if extra := set(self.keep_classifiers) - set(self.fractions) - {1.0}:
            raise ValueError(f"keep_classifiers: {sorted(extra)} are not among the fractions {self.fractions}")
        return self


class PretrainConfig(Strict):
    """The tiny encoders of the embedded catalogue, made from its generic corpora."""

    seed: int = 0
    titles: PositiveInt = 16000
    vocab_size: PositiveInt = 3000
    hidden_size: PositiveInt = 96
    layers: PositiveInt = 2
    heads: PositiveInt = 3
    text_epochs: PositiveInt = 4
    text_lr: PositiveFloat = 1e-3
    pictures: PositiveInt = 20000
    vision_size: PositiveInt = 128
    vision_layers: PositiveInt = 3
    vision_epochs: PositiveInt = 5
    vision_lr: PositiveFloat = 1e-3
    batch_size: PositiveInt = 64


class RuntimeConfig(Strict):
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["no", "auto", "bf16", "fp16"] = "no"  # auto: bf16 where the device multiplies in it
    fast: bool = True  # icssl_lib/fast.py; False: transformers' own forward, which is the reference
    compile: bool = Field(False, exclude_if=operator.not_)  # half a minute to begin with: for long trainings on a GPU
    cuda_graphs: bool = Field(True, exclude_if=bool)  # icssl_lib/graphs.py: on a GPU a step is recorded and replayed
    processes: PositiveInt = 1  # of one stage, each with a device of its own; a batch is shared out among them
    # Between two states that a killed stage goes on from. No part of what a result is, so left out of ``model_dump``.
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(10, exclude=True)
    threads: PositiveInt = 1  # per job on a CPU; fixed, since sums depend on it


class Variant(Strict):
    """A method under settings of its own, named in ``variants`` and then in ``methods``, beside the study's."""

    of: Name  # the method that is varied
    text: dict[str, Any] = {}
    vision: dict[str, Any] = {}
    adapt: dict[str, Any] = {}
    finetune: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Section and what changes there, for sections where something does."""
        return {name: changes for name in SECTIONS if (changes := getattr(self, name))}


SECTIONS = ("text", "vision", "adapt", "finetune")


class Study(Strict):
    study: Name
    seeds: Seeds = [0, 1, 2]
    split_seed: int = 0
    datasets: Annotated[dict[Name, SourceConfig], Field(min_length=1)]
    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    methods: Annotated[list[Name], Field(min_length=1)] = ["origin", "simcse", "convirt", "convirt_shuffled"]
    variants: dict[Name, Variant] = {}
    notebooks: list[Literal["cost", "beyond", "ablations"]] = []  # beside those of every study: 06, 07, 08
    pretrain: PretrainConfig | None = None
    adapt: AdaptConfig = AdaptConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        if "pretrained" in (self.text.model, self.vision.model) and self.pretrain is None:
            raise ValueError("a model named 'pretrained' needs a `pretrain:` section, or name a model or folder")
        for key in ("seeds", "methods"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"`{key}` holds a value twice: {values}")
        for name, variant in self.variants.items():
            if variant.of in self.variants:
                raise ValueError(f"variants: '{name}' is of '{variant.of}', itself a variant; name a method")
            for section, changes in variant.settings.items():
                known = type(getattr(self, section)).model_fields
                for key in changes:
                    if key not in known:
                        raise ValueError(f"variants.{name}.{section}.{key}: unknown key; {nearest(key, list(known))}")
            try:
                own = self.of(name).finetune.fractions
            except ValidationError as error:
                raise ValueError(f"variants.{name}: " + "; ".join(_explain(item) for item in error.errors())) from None
            if alone := sorted(set(own) - set(self.finetune.fractions)):
                raise ValueError(
                    f"variants.{name}.finetune.fractions: {alone} are none of the study's, to compare with"
                )
        return self

    def of(self, method: str) -> "Study":
        """The study as ``method`` sees it: a variant's settings stand in the place of the study's own."""
        if method not in self.variants:
            return self
        update = {}
        for name, changes in self.variants[method].settings.items():
            section = getattr(self, name)
            update[name] = type(section).model_validate(section.model_dump() | changes)
        return self.model_copy(update=update)


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: ``did you mean 'x'?`` or the list of what is known."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(sorted(known)[:30])}{' ...' if len(known) > 30 else ''}"


def load_config(path: str | Path) -> Study:
    """Read and check one study file.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (with the nearest known one), a bad value.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise ConfigError(f"{path}: no such configuration file; {near}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values at the top, found {type(raw).__name__}")
    _resolve_paths(raw, path.parent)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _resolve_paths(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths of a raw configuration absolute, in place."""

    def resolve(section: Any, key: str) -> None:
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = str((folder / Path(section[key]).expanduser()).resolve())

    for source in (raw.get("datasets") or {}).values() if isinstance(raw.get("datasets"), dict) else ():
        resolve(source, "table")
        resolve(source, "image_folder")
        resolve(source, "folder")
        if isinstance(source, dict) and "://" not in str(source.get("meta")):
            resolve(source, "meta")
    variants = raw.get("variants")
    parts = [raw, *(variants.values() if isinstance(variants, dict) else ())]
    for part in filter(lambda part: isinstance(part, dict), parts):
        resolve(part.get("vision"), "checkpoint")
        text = part.get("text")
        model = text.get("model") if isinstance(text, dict) else None
        if isinstance(model, str) and (model.startswith((".", "/", "~")) or (folder / model).is_dir()):
            resolve(text, "model")


def _explain(item: dict[str, Any]) -> str:
    """One pydantic error in one sentence, with the nearest name where a key is unknown."""
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{where or 'file'}: {item['msg']} (got {item['input']!r:.80})"
    *parents, key = item["loc"]
    return f"{where}: unknown key; {nearest(str(key), list(_model_at(parents).model_fields))}"


def _model_at(parents: list[str | int]) -> type[BaseModel]:
    """The model that an error's location points into: sections by name, sources by their tag."""
    sources = {
        get_args(m.model_fields["source"].annotation)[0]: m for m in (SyntheticSource, TableSource, AmazonSource)
    }
    if parents and parents[0] == "datasets":
        return sources[str(parents[-1])]
    if parents and parents[0] == "variants":  # what is inside their sections `Study` checks itself
        return Variant
    model: type[BaseModel] = Study
    for part in parents:
        options = [
            model.model_fields[str(part)].annotation,
            *get_args(model.model_fields[str(part)].annotation),
        ]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return model
