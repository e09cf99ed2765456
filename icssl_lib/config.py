"""One YAML file is one study; paths in it are relative to its folder. Unknown keys are refused, with a hint."""

import difflib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
AMAZON_HOSTS = ["snap.stanford.edu", "mcauleylab.ucsd.edu", "datarepo.eng.ucsd.edu", "m.media-amazon.com"]


@dataclass(frozen=True)
class Run:
    """What is trained and measured once: one method on one dataset with one seed."""

    dataset: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset} {self.method} seed {self.seed}"


def _stays_text(name: str) -> str:
    if name.lower() in ("inf", "infinity", "nan", "na", "none", "null", "true", "false"):
        raise ValueError(f"'{name}' in results.csv would be read as a number, a boolean or missing; try 'shop-{name}'")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,99}$"), AfterValidator(_stays_text)]  # becomes a folder
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and remedy."""


class Strict(BaseModel, frozen=True, allow_inf_nan=False):
    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key '{key}'; {nearest(str(key), list(cls.model_fields))}")
            if isinstance(raw[key], bool) and cls.model_fields[key].annotation is not bool:  # pydantic counts it as 1
                raise ValueError(f"{key}: {raw[key]} is neither number nor text")
        return raw


class Source(Strict):
    mask_class_words: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of class words that titles lose: the law's dial
    class_words: list[str] = []  # beside the words of class names, what is masked: their synonyms


class SyntheticSource(Source):
    source: Literal["synthetic"]
    genre: Literal["automotive", "beauty", "electronics"]
    products: PositiveInt = 4000
    classes: Annotated[int, Field(ge=2)] = 40
    world: Annotated[int, Field(ge=0)] = 0  # other families, brands, synonyms, proportions and light
    name_distance: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the words of class names that no title has


class LabelsTable(Strict):  # a second table
    table: Path
    id: str  # column of the products' ids
    label: str


class TableSource(Source):
    """A CSV, TSV, JSONL or Parquet table (optionally .gz) with pictures in a folder or in a column of bytes."""

    source: Literal["table"]
    table: Path
    title: str = "title"
    label: str = "label"
    id: str | None = None  # None: the row number
    image: str | None = "image"  # a column of paths in image_folder, or of bytes; "{sku}.jpg": by columns; None: none
    labels: LabelsTable | None = None  # where the labels are, if not in a column of the table
    part: str | None = None  # a column that holds ssl, train, dev or test; None: the split by `split_seed`
    unescape: bool = False  # True: "&amp;" in texts becomes "&"
    image_folder: Path | None = None  # None: the table's folder
    missing_image: Literal["drop", "keep"] = "drop"
    min_class_size: PositiveInt = 1  # smaller classes are dropped, and counted
    unlabelled: Literal["ssl", "drop"] = "ssl"  # ssl: products without a label adapt the encoder, and are no class


class AmazonSource(Source):
    source: Literal["amazon"]
    vintage: Literal[2014, 2018, 2023]
    meta: str  # meta_<Genre>.json.gz or .jsonl[.gz]: a path, or an http(s) address to fetch it from
    folder: Path  # where a fetched file and the pictures lie; studies and genres may share one
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of the metadata file
    missing_image: Literal["drop", "keep"] = "drop"
    min_class_size: PositiveInt = 1
    hosts: list[str] = Field(AMAZON_HOSTS, exclude=True)  # no other is asked, whatever an address or a redirect says
    connections: Annotated[int, Field(ge=1, le=64)] = Field(8, exclude=True)
    requests_per_second: PositiveFloat = Field(20, exclude=True)  # exclude: changed, it makes no study run anew


class TextConfig(Strict):
    model: str = "pretrained"  # hub name, folder, or "pretrained": what this study's `pretrain` section makes
    pooling: Literal["auto", "mean", "cls"] = "auto"  # auto: as the model's modules.json says, mean without one
    max_tokens: Annotated[int, Field(ge=4)] = 32


class VisionConfig(Strict):
    model: str = "pretrained"  # a timm name, or "pretrained"
    checkpoint: Path | None = None  # a local .safetensors file for a timm name; None: timm's own weights (hub)
    image_size: Annotated[int, Field(ge=16)] = 224
    frozen: bool = False  # True: features are computed once and only the projection trains
    random: bool = False  # True: the model without its weights, drawn anew


class AdaptConfig(Strict):
    epochs: PositiveInt = 50
    batch_size: Annotated[int, Field(ge=2)] = 32
    lr: PositiveFloat = 1e-5
    weight_decay: Weight = 1e-8
    temperature: PositiveFloat = 0.1
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.75
    positive_in_denominator: bool = False  # False: Eqs. 3, 6, 7 as printed; True: InfoNCE
    mask_duplicates: bool = True  # a title that stands twice in a batch is no negative of itself
    projection_dim: PositiveInt = 768
    projection_depth: PositiveInt = 2
    ssl_fraction: Fraction = 1.0  # of the SSL part, at random
    chunk_size: PositiveInt | None = None  # gradient caching: rows through a tower at a time, for batches beyond memory


class FinetuneConfig(Strict):
    epochs: PositiveInt = 30
    min_steps: Annotated[int, Field(ge=0)] = 0  # small fractions go on for more epochs, until so many steps
    batch_size: PositiveInt = 32
    lr: PositiveFloat = 5e-5
    weight_decay: Weight = 1e-8
    label_noise: Share = 0.0  # of Train's labels that are made wrong
    noise_towards: Literal["any", "similar"] = "any"  # "similar": a class that TF-IDF confuses with the right one
    imbalance: Literal["none", "logit_adjusted", "class_balanced"] = "none"
    label_names: bool = False  # True: each label's name is one more title of its own
    head: Literal["first", "pooled"] = "first"  # transformers' own; pooled: a layer on the mean, begun as a probe
    features: tuple[Literal["words", "ngrams", "title"], ...] = ()  # logistic regression on these, not fine-tuning
    fractions: Annotated[list[Fraction], Field(min_length=1)] = list(FRACTIONS)
    keep_classifiers: list[Fraction] = [1.0]  # fractions whose weights are saved

    def steps(self, n_train: int) -> tuple[int, int]:
        """Epochs and optimiser steps on ``n_train`` products."""
        per_epoch = -(-n_train // self.batch_size)
        epochs = max(self.epochs, -(-self.min_steps // per_epoch))
        return epochs, epochs * per_epoch

    @model_validator(mode="after")
    def _exportable(self) -> "FinetuneConfig":
        if extra := set(self.keep_classifiers) - set(self.fractions) - {1.0}:
            raise ValueError(f"keep_classifiers: {sorted(extra)} are not among the fractions {self.fractions}")
        return self


class PretrainConfig(Strict):
    titles: PositiveInt = 16000
    vocab_size: PositiveInt = 3000
    hidden_size: PositiveInt = 96
    layers: PositiveInt = 2
    heads: PositiveInt = 3
    text_epochs: PositiveInt = 4
    pictures: PositiveInt = 20000
    vision_size: PositiveInt = 128
    vision_layers: PositiveInt = 3
    vision_epochs: PositiveInt = 5


class RuntimeConfig(Strict):
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["no", "auto", "bf16", "fp16"] = "no"  # auto: bf16 where the device multiplies in it
    fast: bool = True  # icssl_lib/fast/unpad.py; False: transformers' own forward, which is the reference
    cuda_graphs: bool = True  # fast/cuda_graphs.py: on a GPU a step is recorded and replayed
    processes: PositiveInt = 1  # of one stage, each with a device of its own; a batch is shared out among them
    threads: PositiveInt = 1  # per job on a CPU; fixed, since sums depend on it
    checkpoint_minutes: Weight = Field(10, exclude=True)  # between states that a killed stage goes on from
    job_per: Literal["method", "seed"] = Field("method", exclude=True)  # seed: for clusters and several GPUs


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
        return self.model_dump(exclude={"of"}, exclude_defaults=True)


SourceConfig = Annotated[SyntheticSource | TableSource | AmazonSource, Field(discriminator="source")]


class Study(Strict):
    study: Name
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = [0, 1, 2]
    split_seed: int = 0
    datasets: Annotated[dict[Name, SourceConfig], Field(min_length=1)]
    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    methods: Annotated[list[Name], Field(min_length=1)] = ["origin", "simcse", "convirt", "convirt_shuffled"]
    variants: dict[Name, Variant] = {}
    notebooks: list[Literal["cost", "beyond", "ablations", "law"]] = []  # beside those of every study: 06 to 09
    maps: bool = True  # of the space of titles, before and after adaptation
    pretrain: PretrainConfig | None = None  # of tiny encoders, on the embedded catalogue's generic corpora
    adapt: AdaptConfig = AdaptConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        if "pretrained" in (self.text.model, self.vision.model) and self.pretrain is None:
            raise ValueError("a model named 'pretrained' needs a `pretrain:` section, or name a model or folder")
        lists = {"seeds": self.seeds, "methods": self.methods, "finetune.fractions": self.finetune.fractions}
        lists["finetune.fractions, as a percentage"] = [f"{100 * f:03g}" for f in self.finetune.fractions]  # file names
        for key, values in lists.items():
            if len(set(values)) != len(values):
                raise ValueError(f"`{key}` holds a value twice: {values!r:.200}")
        if joined := [name for name, s in self.datasets.items() if getattr(s, "labels", None) and s.id is None]:
            raise ValueError(f"datasets.{joined[0]}: `labels` are found by `id`; name the table's column")
        if "all" in self.datasets:
            raise ValueError("datasets: 'all' stands for all of them together; choose another name")
        for name in self.variants:
            if own := sorted(set(self.of(name).finetune.fractions) - set(self.finetune.fractions)):
                raise ValueError(f"variants.{name}.finetune.fractions: {own} are not among the study's fractions")
        return self

    def starting_from(self, encoder: Path) -> "Study":
        """The study with the text encoder in the folder ``encoder``."""
        return self.model_copy(update={"text": self.text.model_copy(update={"model": str(encoder)})})

    def of(self, method: str) -> "Study":
        """The study as ``method`` sees it: a variant's settings stand in the place of the study's own."""
        if method not in self.variants:
            return self
        settings = self.variants[method].settings
        update = {name: getattr(self, name).model_dump() | changes for name, changes in settings.items()}
        try:
            return Study.model_validate(dict(self) | {"variants": {}} | update)
        except ValidationError as error:
            raise ConfigError(_explain(error, "variants", method)) from None


def nearest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: ``did you mean 'x'?`` or the list of what is known."""
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(sorted(known)[:30])}{' ...' if len(known) > 30 else ''}"


class _Loader(yaml.SafeLoader):
    """Refuses, with the line, a key that would silently replace one above it, and values that are none."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        keys = [] if hasattr(node, "seen") else [str(key.value) for key, _ in node.value]
        node.seen = True  # what is merged into it may stand in it as well
        for key, n in Counter(keys).items():
            if n > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is given twice", node.start_mark)
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError) as error:
            raise yaml.constructor.ConstructorError(None, None, f"no such value ({error})", node.start_mark) from None


def load_config(path: str | Path) -> Study:
    """Read and check one study file. Raises: ConfigError: no such file, no YAML, an unknown key, a bad value."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        aliases = re.findall(r"(?<!\S)\*\w|[\[{,:]\*\w", text)  # of which a few lines are a million
        if len(text) > 200_000 or len(aliases) > 30:
            raise ConfigError("a study has at most 200,000 characters and 30 aliases")
        return Study.model_validate(_absolute(yaml.load(text, _Loader), path.parent))
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise ConfigError(f"{path}: no such configuration file; {near}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None
    except (ValueError, OSError) as error:  # ConfigError; a name that is too long for a path, or holds a NUL
        raise ConfigError(f"{path}: {error}") from None


def _absolute(value: Any, folder: Path, section: str = "", key: str = "") -> Any:
    """A raw configuration with absolute paths: settings that are paths, and a text model that is a folder here."""
    if isinstance(value, dict):
        return {name: _absolute(item, folder, key, name) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    is_path = key in ("table", "image_folder", "folder", "checkpoint") or (key == "meta" and "://" not in value)
    if (section, key) == ("text", "model"):  # otherwise a name of the hub
        is_path = value.startswith((".", "/", "~")) or (folder / (value.rpartition("/")[0] or value)).is_dir()
    if not is_path:
        return value
    expanded = os.path.expanduser(value)
    if expanded.startswith("~") or (key in ("table", "meta") and "{" in str(folder.resolve() / expanded)):
        raise ConfigError(f"{section}.{key}: {value!r}: no such user, or a brace, which Snakemake would replace")
    return str((folder / expanded).resolve())


def _explain(error: ValidationError, *section: str) -> str:
    """Each mistake in one sentence that begins with its key."""
    sentences = []
    for item in error.errors()[:10]:
        where = ".".join(map(str, (*section, *item["loc"]))) or "file"
        got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r:.80})"
        sentences.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(sentences)
