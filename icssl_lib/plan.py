"""What a study costs, before anything runs: jobs, steps, FLOPs, memory, disk and hours. `make plan`.

FLOPs are counted by torch on the meta device, where a model has shapes and no weights. Hours come from seconds per
step: measured on this machine with models of the study's shapes and random weights, or, for hardware that is only
named, from its data sheet's peak.
"""

import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from icssl_lib.catalogue import PARTS, Report, normalise_title, split
from icssl_lib.config import AmazonSource, Study, nearest
from icssl_lib.fetch import FINAL
from icssl_lib.images import decode, written_whole
from icssl_lib.methods import METHODS, adapted_by, entry_of, trained_alike, trainings
from icssl_lib.paper import TABLE1
from icssl_lib.pretrain import VISION_MODEL, text_shape, vision_shape
from icssl_lib.runs import may_fork
from icssl_lib.sources.amazon import meta_path, picture_path, read_log, read_products

# Dense peak in TFLOP/s, (16 bit, float32), and memory in GB, of NVIDIA's data sheets: H100 SXM5 80 GB, H200 SXM 141 GB,
# A100 80 GB, V100 SXM2 32 GB, T4 (the last two have fp16 and no bf16), and the Ada architecture white paper (RTX 4090).
HARDWARE = {
    "h100": (989, 67, 80),
    "h200": (989, 67, 141),
    "a100": (312, 19.5, 80),
    "v100": (125, 15.7, 32),
    "rtx4090": (165, 82.6, 24),
    "t4": (65, 8.1, 16),
}
UTILISATION = 0.3  # share of the peak that training of transformers commonly reaches
LEAST_STEP = 0.02  # seconds: on a GPU a step of small models is spent on launching its kernels, unless it is recorded
CORE = 2e10  # FLOP/s of a CPU core, where nothing was measured: for pretraining, which never uses a GPU
PICTURE = 0.008  # seconds to decode and resize a picture, where none can be tried
# Seconds of a job beside its steps, by the quick study's notebooks and records: its process, its kernel, reading the
# catalogue and the weights, figures, writing. Cold: where jobs are no forks of a process that has imported torch.
JOB, COLD_JOB = 4.0, 24.0
REPORT = {"results": 2, "table2": 10, "figure5": 6, "report": 12}  # seconds
REPORT |= {"cost": 100, "beyond": 30, "ablations": 30}  # where a study asks for them
MAP, MAP_PRODUCT = 30, 0.002  # seconds of a map: compiling UMAP, and per product with its neighbours, page and pictures
# Logistic regression on TF-IDF, measured with 3,000 and 15,000 titles of 953 classes: seconds per label and class, and
# float64 vectors of one weight per class and word that its solver keeps. As many different words as titles.
TFIDF_SECONDS, TFIDF_VECTORS = 7e-6, 35
PROCESS = 0.5e9  # bytes: python and torch, before any model
MEASURED = 20  # seconds of steps, all kinds, alone and together


class PlanError(ValueError):
    """The cost cannot be given; the message says why and what to do."""


# --- the data


@dataclass(frozen=True)
class Data:
    """A dataset's size. pairs: SSL products with a picture; pictures: rows of the store; tokens: of a title, its mean;
    longest: of a batch, its mean, which is what a step computes."""

    ssl: int
    pairs: int
    train: int
    dev: int
    test: int
    pictures: int
    classes: int
    tokens: float
    longest: float
    origin: str  # where these figures come from
    sample: Any = None  # decodes one picture, for its time


def data_of(name: str, study: Study, out: Path) -> Data:
    """The size of a dataset: of the ingested catalogue, else of its source, else of the paper's Table 1.

    Raises:
        PlanError: neither is there.
        CatalogueError: its source cannot be read.
    """
    source = study.datasets[name]
    if (out / "catalogues" / name / "catalogue.json").is_file():
        products = pd.read_parquet(out / "catalogues" / name / "products.parquet")
        shown, pictures = (products.image_row >= 0).to_numpy(), products.image_row.max() + 1
        return _data(study, out, products.title, products.label, products.part, shown, pictures, "as ingested")
    if source.source == "amazon" and meta_path(source).is_file():
        table, shown, origin = _products_of(name, source)
        part = split(table, study.split_seed)
        return _data(study, out, table.title, table.label, part, shown, table.image[shown].nunique(), origin)
    if source.source == "amazon":
        row = TABLE1[TABLE1.dataset == name]
        if row.empty:
            raise PlanError(
                f"datasets.{name}: {source.meta} is not there to be counted, and the paper has no such genre; fetch it "
                f"first, or name the dataset after one of {', '.join(TABLE1.dataset)}"
            )
        n, classes, words = (int(row.products.iloc[0]), int(row.classes.iloc[0]), float(row.words.iloc[0]))
        parts = {part: round(n * share / 100) for part, share in PARTS.items()}
        tokens = min(study.text.max_tokens, 1.4 * words + 2)
        longest = min(study.text.max_tokens, 2 * tokens)
        return Data(
            **parts, pairs=parts["ssl"], pictures=n, classes=classes, tokens=tokens, longest=longest,
            origin="the paper's Table 1; the longest title of a batch: twice the mean",
        )  # fmt: skip
    from icssl_lib.sources import load

    raw = load(name, source)
    table = raw.table.assign(label=raw.table.label.str.strip())
    if getattr(source, "unlabelled", "drop") == "drop":
        table = table[table.label != ""].reset_index(drop=True)
    shown = np.full(len(table), raw.read_image is not None)
    if source.source != "synthetic" and raw.read_image is not None:
        shown = np.array([bool(reference) for reference in table.image])
        if source.missing_image == "drop":
            table, shown = table[shown].reset_index(drop=True), shown[shown]

    def sample(i: int) -> np.ndarray:
        return decode(raw.read_image(table.image.iloc[i]), study.vision.image_size)

    origin = "by its settings" if source.source == "synthetic" else "by its file, before cleaning"
    tried = sample if shown.any() else None
    part = split(table, study.split_seed)
    return _data(study, out, table.title, table.label, part, shown, int(shown.sum()), origin, tried)


def _products_of(name: str, source: AmazonSource) -> tuple[pd.DataFrame, np.ndarray, str]:
    """The products of an Amazon dataset that ingest will keep, as far as its metadata and what is fetched tell.

    Returns:
        Columns title, label and image (path below the folder, or ''); which have a picture, (N,); what is not known.
    """
    statuses = read_log(source.folder)
    dead = {path for path, status in statuses.items() if status in FINAL and status != "ok"}
    table = pd.DataFrame(read_products(name, source, Report()), dtype=object)  # object: a title may be no Unicode
    table["image"] = [url and picture_path(url) for url in table.url]
    table["shown"] = [path != "" and path not in dead for path in table.image]
    table = table.drop_duplicates("id")
    if source.missing_image == "drop":
        table = table[table.shown]
    table = table[table.label.map(table.label.value_counts()) >= source.min_class_size].reset_index(drop=True)
    unknown = len({path for path in table.image[table.shown] if statuses.get(path) != "ok"})
    origin = "by its metadata, before cleaning"
    if unknown:
        lost = "products without one are dropped" if source.missing_image == "drop" else "their products are kept"
        origin += f"; pictures not fetched yet: {unknown}, of which some may be gone ({lost})"
    return table, table.shown.to_numpy(), origin


def _data(study, out, title, label, part, shown, pictures, origin, sample=None) -> Data:
    sizes = part.value_counts()
    drawn = title.sample(min(len(title), 4096), random_state=0)
    lengths = title_lengths(list(drawn), study, out)
    batch = min(study.adapt.batch_size, len(lengths))
    batches = lengths[: len(lengths) // batch * batch].reshape(-1, batch)
    return Data(
        **{name: int(sizes.get(name, 0)) for name in PARTS},
        pairs=int(((part == "ssl").to_numpy() & shown).sum()),
        pictures=int(pictures),
        classes=label[(part == "train").to_numpy()].nunique(),
        tokens=float(lengths.mean()),
        longest=float(batches.max(axis=1).mean()),
        origin=origin,
        sample=sample,
    )


def title_lengths(titles: list[str], study: Study, out: Path) -> np.ndarray:
    """Tokens of each title, (N,): by the tokenizer where it is on disk, else 1.4 a word and two special ones."""
    from transformers import AutoTokenizer

    from icssl_lib.adapt import text_model

    try:
        tokenizer = AutoTokenizer.from_pretrained(text_model(study, out), local_files_only=True)
        ids = tokenizer(titles, truncation=True, max_length=study.text.max_tokens)["input_ids"]
        return np.array([len(row) for row in ids], dtype=float)
    except (OSError, ValueError):
        words = np.array([len(normalise_title(title).split()) for title in titles])
        return np.minimum(study.text.max_tokens, np.ceil(1.4 * words) + 2)


# --- the models


@dataclass(frozen=True)
class Cost:
    """Of one row (a title, a picture) through a tower. flops: forward; saved: bytes kept for backward, float32."""

    params: int
    flops: float
    saved: float
    width: int


def cost_of(model: nn.Module, row: Tensor, width: int) -> Cost:
    """Count a model on the meta device; ``row``: a batch of one. Lookups cost nothing, matrix products 2 a multiply."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor  # alive in the graph, so that no other takes its address

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = model.train()(row)
    del output
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops(), sum(kept.values()), width)


def text_config(study: Study):
    """The text encoder's shape, a transformers config.

    Raises: PlanError: neither a folder, nor built in, nor to be had from the hub.
    """
    from transformers import AutoConfig, BertConfig

    model = study.text.model
    if model == "pretrained":
        vocabulary = study.pretrain.vocab_size
        return text_shape(study.pretrain, vocabulary, pad_token_id=0, cls_token_id=2, sep_token_id=3)
    if model.rpartition("/")[2] == "bert-base-uncased" and not Path(model).is_dir():
        return BertConfig()  # its defaults are this model
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise PlanError(
            f"text.model: FLOPs, memory and hours need the config.json of '{model}', which is neither here nor to "
            f"be had from the hub ({str(error).splitlines()[0]}). Set text.model to a folder that holds one"
        ) from None


def make_backbone(study: Study, tower: str) -> nn.Module:
    """A tower's encoder with the study's shape and random weights, on the default device."""
    if tower == "text":
        from transformers import AutoModel

        return AutoModel.from_config(text_config(study), attn_implementation="eager")
    import timm

    options = {"num_classes": 0, "pretrained": False}
    name, size = study.vision.model, study.vision.image_size
    if name == "pretrained":
        return timm.create_model(VISION_MODEL, **options, **vision_shape(study.pretrain, size))
    if ":" not in name and not timm.is_model(name):
        raise PlanError(f"vision.model: timm has no '{name}'; {nearest(name, timm.list_models())}")
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError:  # a convolutional network takes any size, and no img_size
        return timm.create_model(name, **options)


def costs(study: Study, tokens: int) -> dict[str, Cost]:
    """Both towers' cost, without projections: of a title of so many tokens, of a picture."""
    with torch.device("meta"):
        text, vision = make_backbone(study, "text"), None
        found = {"text": cost_of(text, torch.ones(1, tokens, dtype=torch.long), text.config.hidden_size)}
        seeing = [m for m in study.methods if entry_of(study, m).pictures != "none" or entry_of(study, m).looks]
        if seeing or study.vision.model == "pretrained":
            vision = make_backbone(study, "vision")
            pixels = torch.zeros(1, 3, study.vision.image_size, study.vision.image_size)
            found["vision"] = cost_of(vision, pixels, vision.num_features)
    return found


# --- the jobs


@dataclass
class Job:
    """One node of the DAG. kind: what its steps are, for `Speed`; forward: rows through a tower beside the steps."""

    stage: str
    method: str
    dataset: str = ""
    kind: str = ""
    steps: int = 0
    batch: int = 0
    flops: float = 0.0
    memory: float = PROCESS  # bytes
    disk: float = 0.0  # bytes
    forward: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0  # beside steps and forward
    after: list[int] = field(default_factory=list)  # positions of jobs that must have ended


def adapt_steps(study: Study, pairs: int) -> tuple[int, int]:
    """Steps and batch size of one adaptation on so many pairs, as `adapt.adapt` takes them."""
    processes = study.runtime.processes
    batch = min(study.adapt.batch_size, pairs) // processes * processes
    return (study.adapt.epochs * (pairs // batch) if batch else 0), batch


# The towers of a classifier, or of one of its `trainings`; of any other, both.
SEES = {"finetune": ["text"], "student": ["text"], "knn": ["text"], "image": ["vision"]}


def finetune_steps(study: Study, n_train: int, more: int = 0) -> list[int]:
    """Steps of the classifier on each fraction of a Train part of so many products, and ``more`` beside them."""
    sizes = [max(1, math.ceil(round(f * n_train, 6))) for f in study.finetune.fractions]
    return [study.finetune.steps(size + more)[1] for size in sizes]


# Settings of an adaptation that change what a step costs.
COSTLY = {"batch_size", "chunk_size", "projection_dim", "projection_depth", "model", "image_size", "frozen"}


def kind_of(study: Study, method: str) -> str:
    """Methods whose steps cost the same share a kind: the first one's name, or a variant's own."""
    if method in study.variants:
        changed = study.variants[method].settings
        if COSTLY & {key for section in ("text", "vision", "adapt") for key in changed.get(section, ())}:
            return method
    entry = entry_of(study, method)
    alike = (entry.loss, entry.pictures == "none")
    return next(name for name, e in METHODS.items() if (e.loss, e.pictures == "none") == alike)


def jobs_of(study: Study, data: dict[str, Data], tower: Callable[[int], dict[str, Cost]], picture: float) -> list[Job]:
    """The DAG, in the order in which Snakemake prefers its jobs.

    Args:
        tower: `costs` of a title of so many tokens.
        picture: seconds to decode one.
    """
    wide = study.runtime.precision == "no" or (study.runtime.precision == "auto" and study.runtime.device == "cpu")
    half = 1.0 if wide else 0.5  # activations of 16 bits; on a CPU that need not have them, the larger is planned
    jobs, pretrained, ingested, encoders, trained, read = [], {}, {}, {}, {}, {name: [] for name in data}
    tiny = study.pretrain
    for name, model in (("text", study.text.model), ("vision", study.vision.model)):
        if model == "pretrained":
            longest = round(statistics.mean(d.longest for d in data.values()))
            cost = tower(longest)[name]
            n, epochs = (tiny.titles, tiny.text_epochs) if name == "text" else (tiny.pictures, tiny.vision_epochs)
            steps = epochs * -(-n // tiny.batch_size)
            extra = 0.15 * longest * 2 * cost.width * (tiny.vocab_size + cost.width) if name == "text" else 0
            memory = PROCESS + 16 * cost.params + tiny.batch_size * cost.saved
            if name == "vision":
                memory += n * 3 * study.vision.image_size**2
            pretrained[name] = len(jobs)
            jobs.append(
                Job(
                    "pretrain", name, kind=f"pretrain {name}", steps=steps, batch=tiny.batch_size, memory=memory,
                    flops=3 * epochs * n * (cost.flops + extra), disk=4 * cost.params,
                    seconds=n * picture if name == "vision" else 0,
                )
            )  # fmt: skip
    for name, d in data.items():
        fetch = []
        source = study.datasets[name]
        if source.source == "amazon":
            fetch = [len(jobs)]
            seconds = d.pictures / source.requests_per_second
            jobs.append(Job("fetch", "", name, seconds=seconds, disk=d.pictures * 40e3))
        ingested[name] = len(jobs)
        size = d.pictures * 3 * study.vision.image_size**2
        jobs.append(Job("catalogue", "", name, seconds=d.pictures * picture, disk=size, after=fetch))
    for method in study.methods:
        entry, own = entry_of(study, method), study.of(method)
        for name, d in data.items() if adapted_by(study, method) == method else ():
            cost = tower(round(d.longest))
            text, vision = cost["text"], cost["vision"] if entry.pictures != "none" else None
            chunk = own.adapt.chunk_size
            steps, batch = adapt_steps(own, round(own.adapt.ssl_fraction * (d.pairs if vision else d.ssl)))
            head = _projection(text.width, own)
            flops, weights = 3 * (text.flops + 2 * head) * entry.passes, text.params + head
            saved, fixed = text.saved * entry.passes, 0
            if entry.words:  # a layer of the encoder's width, and the scores of the vocabulary
                hidden, vocabulary = 0.15 * d.longest, text_config(study).vocab_size
                flops += 3 * hidden * 2 * text.width * (text.width + vocabulary)
                saved, weights = saved + 8 * hidden * vocabulary, weights + text.width**2 + vocabulary
            measured = 2 * min(512, d.dev)  # products, by `adapt.measure`, before and after
            forward = {"text": measured * (4 if vision else 3)}
            if vision:
                head = _projection(vision.width, own)
                area = (own.vision.image_size / study.vision.image_size) ** 2
                weights += head
                flops += 3 * 2 * head
                forward["vision"] = measured
                if own.vision.frozen:
                    fixed, forward["vision"] = vision.params, d.pictures
                else:
                    flops, saved = flops + 3 * vision.flops * area, saved + vision.saved * area
                    weights += vision.params
            rows = batch if chunk is None else min(chunk, batch)
            flops *= 1 if chunk is None else 4 / 3  # gradient caching: forward twice
            beside = sum(n * cost[t].flops for t, n in forward.items())
            needs = [pretrained[t] for t in ("text", "vision") if t in pretrained and (t == "text" or vision)]
            share = study.runtime.processes
            for seed in study.seeds:
                encoders[method, name, seed] = len(jobs)
                jobs.append(
                    Job(
                        "adapt", method, name, kind_of(study, method), steps, batch, steps * batch * flops + beside,
                        PROCESS + 16 * weights + 4 * fixed + half * saved * rows / share, 4 * text.params, forward,
                        after=[ingested[name], *needs],
                    )
                )  # fmt: skip
    for seed in study.seeds:
        for method in study.methods:
            entry, own, alike = entry_of(study, method), study.of(method), trained_alike(study, method)
            for name, d in data.items():
                needs = [ingested[name], *{trained[u[0], name, seed] for u in alike.values() if u[0] != method}]
                if made_by := adapted_by(study, method):
                    needs.append(encoders[made_by, name, seed])
                elif "text" in pretrained and entry.classifier != "image":
                    needs.append(pretrained["text"])
                if entry.looks and "vision" in pretrained:
                    needs.append(pretrained["vision"])
                config, words = own.finetune, entry.classifier == "tfidf" or entry.lexical
                word_seconds = words * TFIDF_SECONDS * d.train * sum(config.fractions) * d.classes
                word_memory = words * TFIDF_VECTORS * 8 * d.classes * d.train * study.runtime.processes
                if entry.classifier == "tfidf":
                    memory = PROCESS + word_memory
                    jobs.append(Job("finetune", method, name, memory=memory, seconds=word_seconds, after=needs))
                    continue
                steps, cost = finetune_steps(own, d.train), tower(round(d.longest))
                kind = entry.teacher if entry.classifier == "distilled" else entry.classifier
                seen = SEES.get(kind, ["text", "vision"])  # as if each product had a picture
                roles = trainings(study, method).keys() - {"student"}
                left = [role for role in roles if alike.get(role, [method])[0] == method]  # no other trains it
                forwards, params, saved = (sum(getattr(cost[t], a) for t in seen) for a in ("flops", "params", "saved"))
                head = sum(cost[t].width for t in seen) * d.classes
                readings = len(steps) * (d.test + d.dev)
                if entry.classifier == "knn":
                    readings += math.ceil(d.train * sum(config.fractions))
                    memory = PROCESS + 4 * params + 4 * cost["text"].width * (d.train + d.test)
                    jobs.append(
                        Job("finetune", method, name, flops=readings * forwards, memory=memory, disk=readings * 30,
                            forward={"text": readings}, after=needs)
                    )  # fmt: skip
                    continue
                if entry.classifier == "late":
                    readings += len(steps) * d.dev  # once more, for the weight
                if config.selection == "best_dev":
                    readings += d.dev * sum(config.steps(max(1, round(f * d.train)))[0] for f in config.fractions)
                if config.uda_weight:  # two forward passes more, and one backward
                    steps = [round(8 / 3 * s) for s in steps]
                if config.imbalance == "two_stage":  # once more, without a gradient of the encoder
                    steps = [round(4 / 3 * s) for s in steps]
                batch, trains = config.batch_size, forwards
                if len(left) < len(roles):
                    kind = left[0] if left else ""
                    steps = steps if left else [0]
                    trains = cost["vision" if kind == "image" else "text"].flops
                if "student" in alike and alike["student"][0] != method:  # then no teacher is asked either
                    steps, kind, seen = [0], "", ["text"]
                elif entry.classifier == "distilled":  # one job of the DAG; here two: their steps cost differently
                    needs = [*needs, len(jobs)]
                    jobs.append(
                        Job("teach", method, name, kind, sum(steps), batch, 3 * sum(steps) * batch * trains,
                            PROCESS + 16 * (params + head) + half * saved * batch,
                            forward=dict.fromkeys(seen, len(config.fractions) * (d.ssl + d.dev)), after=needs[:-1])
                    )  # fmt: skip
                    steps, kind, seen = finetune_steps(own, d.train, d.ssl), "finetune", ["text"]
                    trains = cost["text"].flops
                kept = len(config.keep_classifiers) if entry.classifier in ("finetune", "distilled") else 0
                first = [t for role, users in alike.items() if users[0] == method for t in SEES.get(role, cost)]
                shared = len(config.fractions) * sum(4 * cost[t].params for t in first)  # until the others have read it
                trained[method, name, seed] = len(jobs)
                read[name].append(len(jobs))
                jobs.append(
                    Job(
                        "finetune", method, name, kind, sum(steps), batch,
                        3 * sum(steps) * batch * (trains + 2 * head) + readings * forwards,
                        PROCESS + 16 * (params + head) + max(half * saved * batch, word_memory),
                        kept * 4 * (params + head + entry.lexical * d.classes * d.train) + readings * 30 + shared,
                        dict.fromkeys(seen, readings), word_seconds, after=needs,
                    )
                )  # fmt: skip
    adapting = [m for m in study.methods if adapted_by(study, m) == m]
    for name, d in data.items() if adapting else ():
        products = d.ssl + d.train + d.dev + d.test
        needs = [i for (method, dataset, _), i in encoders.items() if dataset == name and method in METHODS]
        forward = {"text": 2 * products + 4 * d.dev * (len(needs) + 1), "vision": d.dev * len(needs)}
        seconds = MAP + MAP_PRODUCT * products
        jobs.append(Job("explore", "", name, seconds=seconds, forward=forward, after=[*needs, *read[name]]))
    for rule in ("results", "table2", "figure5", *study.notebooks, "report"):
        jobs.append(Job("report", rule, seconds=REPORT[rule], after=list(range(len(jobs)))))
    return jobs


def _projection(width: int, study: Study) -> int:
    """Weights of a projection head: multiplies of one row."""
    depth = study.adapt.projection_depth
    return max(depth - 1, 0) * width**2 + (width * study.adapt.projection_dim if depth else 0)


# --- the speed


@dataclass
class Speed:
    """step: seconds of a step by kind, alone; crowd: times slower with all cores at work; forward: seconds of a row
    by tower; devices: jobs at a time; overhead: seconds of a job beside these."""

    name: str
    step: dict[str, float]
    forward: dict[str, float]
    devices: int
    crowd: dict[str, float] = field(default_factory=dict)
    overhead: float = JOB

    def seconds(self, job: Job, processes: int = 1) -> float:
        slower = self.crowd.get(job.kind, statistics.mean(self.crowd.values()) if self.crowd else 1.0)
        beside = sum(n * self.forward.get(tower, 0.0) for tower, n in job.forward.items())
        trained = (job.steps * self.step.get(job.kind, 0.0) + beside) / (1 if job.stage == "pretrain" else processes)
        return (trained + job.seconds) * slower + (0 if job.stage == "report" else self.overhead)


class Named:
    """Hardware by its data sheet: FLOPs over a share of the peak. Pretraining and pictures stay on a CPU core."""

    def __init__(self, name: str, study: Study, devices: int) -> None:
        if name not in HARDWARE:
            raise PlanError(f"--hardware: no '{name}'; {nearest(name, list(HARDWARE))}")
        peak = HARDWARE[name][0 if study.runtime.precision != "no" else 1]
        self.name, self.rate = f"{devices} x {name}", UTILISATION * peak * 1e12
        self.devices = max(1, devices // study.runtime.processes)
        bits = "16-bit" if study.runtime.precision != "no" else "float32"
        self.note = f"{name}: {UTILISATION:.0%} of its {bits} peak of {peak} TFLOP/s, at least {LEAST_STEP} s a step"

    def seconds(self, job: Job, processes: int = 1) -> float:
        if job.stage == "pretrain":
            return job.flops / CORE + job.seconds + COLD_JOB
        trained = max(job.flops / self.rate / processes, job.steps * LEAST_STEP)
        return trained + job.seconds + (0 if job.stage == "report" else COLD_JOB)


def steppers(study: Study, data: Data, kinds: list[str], rows: dict[str, int]) -> dict[str, Callable[[], None]]:
    """One real step of each kind: models of the study's shapes with random weights, made-up titles and pictures.

    Args:
        rows: batch size of each kind.
    """
    from icssl_lib.adapt import Batch, Towers, make_accelerator
    from icssl_lib.encoders import MaskedWords, TextTower, VisionTower
    from icssl_lib.fast import fast
    from icssl_lib.finetune import LookingClassifier, logits
    from icssl_lib.scale import WholeBatch

    accelerator = make_accelerator(study.runtime)
    device, cpu = accelerator.device, torch.device("cpu")  # pretraining never uses another
    shape = text_config(study)

    def tokens(n: int, where: torch.device = device) -> dict[str, Tensor]:
        longest = max(2, round(data.longest))
        ids = torch.randint(5, shape.vocab_size, (n, longest))
        mask = torch.arange(longest) < torch.linspace(data.tokens, longest, n).round().long().clamp(min=1)[:, None]
        return {"input_ids": ids.to(where), "attention_mask": mask.long().to(where)}

    def pixels(n: int, where: torch.device = device) -> Tensor:
        size = study.vision.image_size
        return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, device=where)

    def trainer(model: nn.Module, loss: Callable[[], Tensor], backward=accelerator.backward, where=device):
        model.to(where).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
        context = nullcontext if backward is Tensor.backward else accelerator.autocast  # pretraining is in float32

        def step() -> None:
            with fast(model, study.runtime.fast):
                with context():
                    value = loss()
                backward(value)
            optimizer.step()
            optimizer.zero_grad()
            if where.type == "cuda":
                torch.cuda.synchronize()

        return step

    def text_backbone() -> nn.Module:
        from transformers import AutoModel

        return AutoModel.from_config(shape)

    def classifier(n: int) -> Callable[[], None]:
        from transformers import AutoModelForSequenceClassification

        shape.num_labels = data.classes
        model, target = AutoModelForSequenceClassification.from_config(shape), torch.randint(0, data.classes, (n,))
        return trainer(
            model, lambda: nn.functional.cross_entropy(logits(model, tokens(n)).float(), target.to(device))
        )  # fmt: skip

    def looking(n: int, title: bool) -> Callable[[], None]:
        text = TextTower(text_backbone(), study.text.pooling, 1, 0) if title else None
        model = LookingClassifier(text, VisionTower(make_backbone(study, "vision"), 1, 0), data.classes)
        target, shown = torch.randint(0, data.classes, (n,), device=device), torch.ones(n, device=device)

        def loss() -> Tensor:
            found = model(pixels(n), shown, **(tokens(n) if title else {}))
            return nn.functional.cross_entropy(found.float(), target)

        return trainer(model, loss)

    def averaged(n: int) -> Callable[[], None]:
        both = classifier(n), looking(n, title=False)
        return lambda: [step() for step in both]

    def masked_words(n: int) -> Callable[[], None]:
        model = nn.ModuleList([text_backbone(), nn.Linear(shape.hidden_size, shape.vocab_size)])

        def loss() -> Tensor:
            hidden = model[0](**tokens(n, cpu)).last_hidden_state.flatten(0, 1)
            scores = model[1](hidden[: round(0.15 * n * data.tokens)])
            return nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))

        return trainer(model, loss, Tensor.backward, cpu)

    def shapes(n: int) -> Callable[[], None]:
        model, target = make_backbone(study, "vision"), torch.zeros(n, dtype=torch.long)

        def loss() -> Tensor:
            return nn.functional.cross_entropy(model(pixels(n, cpu).permute(0, 3, 1, 2).float()), target)

        return trainer(model, loss, Tensor.backward, cpu)

    def contrast(method: str, n: int) -> Callable[[], None]:
        entry, own = entry_of(study, method), study.of(method)
        config, looks = own.adapt, own.vision
        dim, depth, vision = config.projection_dim, config.projection_depth, None
        if entry.pictures != "none":
            vision = VisionTower(make_backbone(own, "vision"), dim, depth, looks.frozen, looks.image_size)
        backbone, words = text_backbone(), None
        if entry.words:
            from transformers import AutoModelForMaskedLM

            words = MaskedWords(backbone, AutoModelForMaskedLM.from_config(shape), [0], 1, shape.vocab_size)
        towers = Towers(TextTower(backbone, study.text.pooling, dim, depth), vision, words)
        whole: list[WholeBatch] = []

        def loss() -> Tensor:
            images = None if vision is None else pixels(n)
            if vision is not None and looks.frozen:
                images = torch.zeros(n, vision.backbone.num_features, device=device)
            groups = torch.arange(n, device=device) if config.mask_duplicates else None
            whole[:] = [WholeBatch(towers, config.chunk_size, accelerator)]
            return entry.loss(whole[0], Batch(tokens(n), images, groups), config)

        return trainer(towers, loss, lambda value: whole[0].backward(value))

    def look(n: int) -> Callable[[], None]:
        tower = VisionTower(make_backbone(study, "vision"), 1, 1, frozen=True).to(device).eval()

        def step() -> None:
            with torch.inference_mode(), accelerator.autocast():
                tower.embed(pixels(n))

        return step

    makers = {
        "finetune": classifier, "image": partial(looking, title=False), "joint": partial(looking, title=True),
        "late": averaged, "pretrain text": masked_words, "pretrain vision": shapes, "vision": look
    }  # fmt: skip
    return {k: (lambda k=k: (makers[k] if k in makers else lambda n: contrast(k, n))(rows[k])) for k in kinds}


def time_steps(study: Study, data: Data, kinds: list[str], rows: dict[str, int], seconds: float) -> dict[str, float]:
    """Median seconds of a step of each kind, after a first one, measured for about so many seconds each.

    With one thread on a CPU they are seconds of CPU time, so that other programs at work do not count.
    """
    torch.manual_seed(0)
    torch.set_num_threads(study.runtime.threads)
    on_cpu = may_fork(study.runtime.device)
    clock = time.process_time if on_cpu and study.runtime.threads == 1 else time.perf_counter
    found = {}
    for kind, make in steppers(study, data, kinds, rows).items():
        step, times, began = make(), [], time.perf_counter()
        while len(times) < 2 or (time.perf_counter() - began < seconds and len(times) < 200):
            before = clock()
            step()
            times.append(clock() - before)
        found[kind] = statistics.median(times[1:])
    return found


def in_parallel(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns in each of ``count`` processes, forks of this one where its state allows it."""

    def called(way: str) -> list[Any]:
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(way)) as pool:
            return [future.result() for future in [pool.submit(function, *args) for _ in range(count)]]

    try:
        return called("fork" if sys.platform == "linux" else "spawn")
    except RuntimeError as error:  # torch's, where a backward pass has started threads here, which a fork lacks
        if "fork" not in str(error):
            raise
    return called("spawn")


def measure(study: Study, data: dict[str, Data], jobs: list[Job], cores: int, total: float = MEASURED) -> Speed:
    """Seconds of each kind of step here: in one process, then in ``cores`` at once.

    Models so large that a step would outlast its time are given fewer rows; the time is scaled up to the batch.

    Raises: PlanError: the models do not fit this machine's memory, or there is no GPU and one is asked for.
    """
    import psutil

    batch = {job.kind: job.batch for job in jobs if job.kind}
    if study.vision.frozen and any(job.forward.get("vision") for job in jobs):
        batch["vision"] = 64
    kinds = list(batch)
    largest, free = max(job.memory for job in jobs if job.kind), psutil.virtual_memory().available
    on_cpu = may_fork(study.runtime.device)
    if study.runtime.device == "cuda" and not torch.cuda.is_available():
        raise PlanError("runtime.device: cuda, but torch sees no GPU here, so that nothing can be measured")
    if on_cpu and largest > 0.9 * free:
        raise PlanError(
            f"a job needs {largest / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free here, so that nothing can be "
            "measured"
        )
    crowd = max(1, min(cores, len(jobs), int(0.9 * free / largest))) if on_cpu else 1
    each = total / len(kinds) / (2 if crowd > 1 else 1)
    per_row = {job.kind: job.flops / max(1, job.steps * job.batch) for job in jobs if job.kind}
    rows = dict(batch)
    if on_cpu:
        for kind in set(rows) & set(per_row):
            rows[kind] = min(rows[kind], max(4, int(each * CORE * study.runtime.threads / 2 / per_row[kind])))
    middle = sorted(data.values(), key=lambda d: d.longest)[len(data) // 2]
    task = (study, replace(middle, sample=None), kinds, rows, each)  # a process cannot be sent a closure
    if on_cpu:
        (alone,) = in_parallel(1, time_steps, *task)
        together = in_parallel(crowd, time_steps, *task) if crowd > 1 else [alone]
        devices, name = cores, f"this machine, {cores} cores"
    else:
        alone = time_steps(*task)
        together, count = [alone], max(1, torch.cuda.device_count())
        devices = max(1, count // study.runtime.processes)
        name = f"this machine, {count} x {torch.cuda.get_device_name() if torch.cuda.is_available() else 'GPU'}"
    slower = {k: max(1.0, statistics.mean(t[k] for t in together) / alone[k]) for k in kinds}
    step = {k: alone[k] * batch[k] / rows[k] for k in kinds}
    text = step["finetune"] / 3 / batch["finetune"] if "finetune" in step else 0.0
    forward = {"text": text}
    paired = [k for k in kinds if k in METHODS and METHODS[k].pictures != "none"]
    if "vision" in step:
        forward["vision"] = step["vision"] / 64
    elif "image" in step:
        forward["vision"] = step["image"] / 3 / batch["image"]
    elif paired:
        forward["vision"] = max(0.0, step[paired[0]] / batch[paired[0]] / 3 - text)
    return Speed(name, step, forward, devices, slower, JOB if on_cpu else COLD_JOB)


def time_pictures(study: Study, data: dict[str, Data], seconds: float = 1.0) -> float:
    """Seconds to draw or to decode one picture, where a few can be tried; else the stated constant."""
    times = []
    for d in data.values():
        began = time.perf_counter()
        for i in range(min(16, d.pictures) if d.sample else 0):
            before = time.process_time()
            try:
                d.sample(i)
            except ValueError:  # a broken picture; ingest will count it
                continue
            times.append(time.process_time() - before)
            if time.perf_counter() - began > seconds / len(data):
                break
    return statistics.mean(times) if times else PICTURE


def wall(jobs: list[Job], seconds: list[float], devices: int) -> float:
    """Seconds until the last job ends: each starts when those before it ended and one of the devices is free."""
    ends: dict[int, float] = {}
    free, left, now = devices, list(range(len(jobs))), 0.0
    running: dict[int, float] = {}
    while left or running:
        for i in [i for i in left if all(ends.get(j, math.inf) <= now for j in jobs[i].after)][:free]:
            running[i] = now + seconds[i]
            left.remove(i)
            free -= 1
        i = min(running, key=running.__getitem__)
        now = ends[i] = running.pop(i)
        free += 1
    return now


# --- the table


def plan(study: Study, out: Path, cores: int, hardware: str | None = None, measured: bool = True) -> dict[str, Any]:
    """What the study costs: stages (one row per stage and method), total, and what the figures rest on.

    Args:
        out: the run folder; what it holds already is read, and still counted as to be done.
        cores: jobs at a time; of named hardware, how many devices.
        hardware: a name in HARDWARE, instead of this machine.
        measured: False: no time is measured; hours are missing unless hardware is named.

    Raises:
        PlanError: the shape of a model is not to be had, or unknown hardware.
        CatalogueError: a dataset's file cannot be read.
    """
    data = {name: data_of(name, study, out) for name in study.datasets}
    tower = cache(lambda tokens: costs(study, tokens))
    picture = time_pictures(study, data) if measured else PICTURE
    jobs = jobs_of(study, data, tower, picture)
    notes = [f"{name}: {d.ssl + d.train + d.dev + d.test} products, {d.pictures} pictures, {d.classes} classes, "
             f"{d.tokens:.1f} tokens a title, {d.longest:.1f} in the longest of a batch; {d.origin}"
             for name, d in data.items()]  # fmt: skip
    notes.append(
        "FLOPs: matrix products and attention of padded titles and of patches; training 3 times forward; memory: 16 "
        "bytes a weight (itself, gradient, Adam's moments) + what autograd keeps + 0.5 GB, of one job"
    )
    speed = None
    if hardware:
        speed = Named(hardware, study, cores)
        notes.append(speed.note)
        most = HARDWARE[hardware][2]
        if max(job.memory for job in jobs if job.kind) > most * 1e9:
            notes.append(f"{hardware} has {most} GB: too little for the largest job; set adapt.chunk_size")
    elif measured:
        try:
            speed = measure(study, data, jobs, cores)
        except PlanError as error:
            notes.append(f"No hours: {error}")
        else:
            notes += [
                f"{kind}: {seconds:.4f} s a step alone, x {speed.crowd[kind]:.2f} with all cores at work"
                for kind, seconds in speed.step.items()
            ]
            notes.append(f"{picture:.4f} s a picture; {speed.overhead:.0f} s a job beside its steps")
    seconds = [speed.seconds(job, study.runtime.processes) if speed else math.nan for job in jobs]
    rows = [
        {"stage": job.stage, "method": "" if job.stage == "report" else job.method, "jobs": 1, "steps": job.steps,
         "items": job.steps * job.batch, "flops": job.flops, "memory_gb": job.memory / 1e9,
         "disk_gb": job.disk / 1e9, "hours": s / 3600}
        for job, s in zip(jobs, seconds, strict=True)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    how = dict.fromkeys(frame.columns[2:], "sum") | {"memory_gb": "max", "hours": lambda h: h.sum(skipna=False)}
    stages = frame.groupby(["stage", "method"], sort=False, as_index=False).agg(how)
    return {
        "study": study.study,
        "hardware": speed.name if speed else None,
        "devices": speed.devices if speed else cores,
        "stages": stages.astype(object).where(stages.notna(), None).to_dict("records"),
        "total": {
            "jobs": len(jobs),
            "steps": int(frame.steps.sum()),
            "flops": float(frame.flops.sum()),
            "disk_gb": float(frame.disk_gb.sum()),
            "hours": sum(seconds) / 3600 if speed else None,
            "wall_hours": wall(jobs, seconds, speed.devices) / 3600 if speed else None,
        },
        "speed": asdict(speed) if isinstance(speed, Speed) else None,
        "notes": notes,
    }


def show(plan: dict[str, Any]) -> str:
    """The plan as text."""
    table = pd.DataFrame([*plan["stages"], {"stage": "total", "method": "", "items": None, **plan["total"]}])
    table["memory_gb"] = table.memory_gb.fillna(table.memory_gb.max())
    texts = {
        "jobs": "{:,.0f}", "steps": "{:,.0f}", "items": "{:,.0f}", "flops": "{:.2e}", "memory_gb": "{:.2f}",
        "disk_gb": "{:.3f}", "hours": "{:.3f}",
    }  # fmt: skip
    shown = table[["stage", "method", *texts]].copy()
    for column, text in texts.items():
        shown[column] = [text.format(v) if v is not None and not pd.isna(v) else "-" for v in table[column]]
    lines = [shown.to_string(index=False), "", *plan["notes"]]
    hours, at_once = plan["total"]["wall_hours"], plan["devices"]
    if hours is None:
        lines.append("Hours: measure them where the study shall run, or name its hardware: " + ", ".join(HARDWARE))
    else:
        took = f"{hours * 60:.1f} minutes" if hours < 2 else f"{hours:.1f} hours"
        lines.append(f"From start to end: {took} on {plan['hardware']}, {at_once} job{'s' * (at_once > 1)} at a time")
    return "\n".join(lines)


def save(plan: dict[str, Any], path: Path) -> None:
    """Write the plan as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(json.dumps(plan, indent=1) + "\n")
