"""One classifier of a method on one fraction of Train, and its reading of Test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState

from icssl_lib.baselines import frozen, labelled, late, oracle, self_taught
from icssl_lib.catalogue import Catalogue, head_tail, train_subset
from icssl_lib.config import Run, Study
from icssl_lib.encoders import save_pretrained
from icssl_lib.fast.processes import in_processes
from icssl_lib.finetune import Start, Task, accuracy, fit
from icssl_lib.lexical import Lexical
from icssl_lib.methods import Method, entry_of
from icssl_lib.metrics import scores as scores_of
from icssl_lib.recommended import distilled, named, with_words
from icssl_lib.remedies import confusable, flipped

CLASSIFIERS = {  # each takes a task, labelled products and, if any, a method's features, and returns a `Read`
    "finetune": fit, "distilled": distilled, "late": late, "frozen": frozen,
    "self_taught": self_taught, "labelled": labelled, "oracle": oracle,
}  # fmt: skip


@dataclass
class Classified:
    """One classifier's reading."""

    predictions: pd.DataFrame  # id, label, predicted, confidence of Test
    n_train: int  # labels used
    dev_accuracy: float
    test_readings: int  # how often Test was handed out for it

    def scores(self, catalogue: Catalogue) -> dict[str, float]:
        """n_train, the metrics on Test, dev_accuracy, test_readings."""
        head, tail = head_tail(catalogue.label_counts)
        # Labels that Train does not hold are of the tail: no classifier can name them.
        tail = tail + sorted(set(self.predictions.label) - set(catalogue.label_counts.index))
        metrics = scores_of(self.predictions.label, self.predictions.predicted, head, tail)
        read = {"dev_accuracy": self.dev_accuracy, "test_readings": self.test_readings}
        return {"n_train": self.n_train, **metrics, **read}


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
    n_train = len(train)
    if config.label_names or entry.names:
        train = pd.concat([train, named(labels)], ignore_index=True)
    instead = config.features and entry.classifier == "finetune"  # of fine-tuning
    kind, features = ("frozen", config.features) if instead else (entry.classifier, entry.features)
    read = CLASSIFIERS[kind](task, train, *[features] * bool(features))
    words = Lexical.fit(list(train.title), list(train.label), labels) if entry.lexical else None
    if keep is not None and kind in ("finetune", "distilled") and PartialState().is_main_process:
        read.tokenizer.model_max_length = task.study.text.max_tokens
        save_pretrained(read.model, read.tokenizer, keep)
        if words:
            words.save(keep)
    read = with_words(read, words) if words else read
    dev = catalogue.part("dev")
    dev_accuracy = accuracy(read(dev), dev, labels)
    test = catalogue.part("test")
    probability = read(test)
    predictions = test[["id", "label"]].reset_index(drop=True)
    predictions["predicted"] = np.array(labels, dtype=object)[probability.argmax(axis=1)]
    predictions["confidence"] = probability.max(axis=1).round(6)
    return Classified(predictions, n_train, dev_accuracy, catalogue.handed["test"] - before)
