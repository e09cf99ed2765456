"""One classifier of a method on one fraction of Train, and its reading of Test; first, whether there can be one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from icssl_lib.baselines import frozen, labelled, oracle, self_taught
from icssl_lib.catalogue import Catalogue, CatalogueError, head_tail, train_subset
from icssl_lib.config import Run, Study
from icssl_lib.encoders import VisionTower, explained, load_text, load_vision, pooling_of, tokenize
from icssl_lib.fast.processes import in_processes
from icssl_lib.finetune import Start, Task, accuracy, build, fit
from icssl_lib.methods import Method, entry_of
from icssl_lib.metrics import scores
from icssl_lib.recommended import named, recommended
from icssl_lib.remedies import confusable, flipped

CLASSIFIERS = {  # each takes a task, labelled products and, if any, a method's features, and returns a `Read`
    "finetune": fit, "recommended": recommended, "frozen": frozen, "self_taught": self_taught,
    "labelled": labelled, "oracle": oracle,
}  # fmt: skip
KEPT = ("finetune", "recommended")  # those that read titles alone, with an encoder, can be saved


def check_models(study: Study) -> None:
    """Load what the methods start from, as they will. Raises: ModelError."""
    used = {method: entry_of(study, method) for method in study.methods}
    for text in {study.of(method).text for method in used} if any(e.reads_encoder for e in used.values()) else ():
        if text.model != "pretrained":
            build(text.model, ["a", "b"], study.model_copy(update={"text": text}))
            text.pooling == "auto" and pooling_of(text.model)
    for vision in {study.of(m).vision for m, entry in used.items() if entry.pictures != "none" or entry.uses_images}:
        if vision.model != "pretrained":
            with explained(f"vision.model: '{vision.model}' does not read {vision.image_size} px"), torch.no_grad():
                tower = VisionTower(load_vision(vision), 1, 1, size=vision.image_size).eval()
                tower.projection(tower.embed(torch.zeros(1, vision.image_size, vision.image_size, 3)))


def check_catalogue(study: Study, catalogue: Catalogue) -> None:
    """Raises: ModelError, CatalogueError: too few words that the methods know, or pictures of under 2% of products."""
    needing = [m for m in study.methods if entry_of(study, m).pictures != "none" or entry_of(study, m).uses_images]
    seen = catalogue.products.image_row >= 0
    if needing and seen.mean() < 0.02:
        report = catalogue.report[catalogue.report.reason.str.startswith("picture")].example
        why = "; ".join([f"{seen.sum()} of {len(seen)} products have a picture", *report])
        mend = f"mend image and image_folder, or leave out {', '.join(needing)}"
        raise CatalogueError(f"dataset {catalogue.name}: {why}; {mend}")
    for text in {study.of(method).text for method in study.methods}:
        if text.model != "pretrained":
            tokenize(load_text(text.model)[1], list(catalogue.products.title[:1000]), text.max_tokens)


class Classified(NamedTuple):
    """One classifier's reading."""

    predictions: pd.DataFrame  # id, label, predicted, confidence of Test
    scores: dict[str, float]  # n_train (labels used), dev_accuracy, the metrics on Test, test_readings (of it)


def classify(
    run: Run, fraction: float, catalogue: Catalogue, study: Study, start: Start, keep: Path | None = None,
    checkpoint: Path | None = None,
) -> Classified:  # fmt: skip
    """Train the classifier of the run's method on a nested fraction of Train, the same products for every method, then
    read Test once; in ``runtime.processes`` processes. keep: folder to save a classifier of titles to, as a plain
    Hugging Face folder; others are not kept. study, checkpoint: see `adapt.adapt`."""
    entry, task = entry_of(study, run.method), Task(catalogue, study.of(run.method), start, run.seed, checkpoint)
    if entry.uses_images and catalogue.images is None:
        raise ValueError(f"{catalogue.name} has no pictures; '{run.method}' needs them")
    return in_processes(study.runtime, _classify, task, entry, fraction, keep)


def _classify(task: Task, entry: Method, fraction: float, keep: Path | None) -> Classified:
    catalogue, labels, config = task.catalogue, task.catalogue.labels, task.study.finetune
    before = catalogue.handed["test"]
    train = train_subset(catalogue.part("train"), fraction, task.seed)
    if config.label_noise:
        towards = confusable(catalogue.part("train"), labels) if config.noise_towards == "similar" else None
        train = train.assign(label=flipped(train.label, labels, config.label_noise, task.seed, towards))
    found = {"n_train": len(train)}
    if config.label_names or entry.names:
        train = pd.concat([train, named(labels)], ignore_index=True)
    instead = config.features and entry.classifier == "finetune"  # of fine-tuning
    kind, features = ("frozen", config.features) if instead else (entry.classifier, entry.features)
    read = CLASSIFIERS[kind](task, train, *[features] * bool(features))
    if keep is not None and kind in KEPT and PartialState().is_main_process:
        read.save(keep)
    dev, test = catalogue.part("dev"), catalogue.part("test")
    found["dev_accuracy"], probability = accuracy(read(dev), dev, labels), read(test)
    predictions = test[["id", "label"]].reset_index(drop=True)
    predictions["predicted"] = np.array(labels, dtype=object)[probability.argmax(axis=1)]
    predictions["confidence"] = probability.max(axis=1).round(6)
    head, tail = head_tail(catalogue.label_counts)
    tail = tail + sorted(set(test.label) - set(labels))  # Train holds none of these: no classifier can name them
    found |= scores(predictions.label, predictions.predicted, head, tail)
    return Classified(predictions, found | {"test_readings": catalogue.handed["test"] - before})
