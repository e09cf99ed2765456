"""Roads without fine-tuning, compared on Dev: logistic regression on words, letters and a frozen encoder, step by step.

python benchmarks/roads.py config/hm.yaml runs/hm --seeds 0 1 2 3 4 5          (seconds a row)

Encoders are those that the study left in its run folder. Rows go to roads.csv; Test is not read. Rows whose ``terms``
are "all titles" are of an earlier script: TF-IDF knew the terms of titles without labels as well (choices.csv says what
that costs), and more ways were tried: a prior for the teacher's classes, and each share of adaptation for all seeds.
The ways "even ..." divided the encoder's directions by the root of their deviations: `recommended` as it was before.
--names asks what names are worth that say less: `paths` ("Department / Name, Name"), `codes` that no title uses, those
of another class (`wrong`), or none at all.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import pandas as pd

from icssl_lib.baselines import frozen, self_taught
from icssl_lib.catalogue import Catalogue, open_catalogue, train_subset
from icssl_lib.config import Run, Study, load_config
from icssl_lib.finetune import Read, Start, Task
from icssl_lib.recommended import named, recommended
from icssl_lib.runs import path_of, resolved

ROWS = Path(__file__).with_name("roads.csv")
BOTH = ("words", "ngrams", "title")


WAYS = {  # what classifies, and whose encoder it reads; chosen: Dev chose the share of adaptation that it keeps
    "words": (lambda task, train: frozen(task, train, BOTH[:2]), "origin"),
    "as it comes": (lambda task, train: frozen(task, train, BOTH), "origin"),
    "adapted": (lambda task, train: frozen(task, train, BOTH), "convirt"),
    "adapted, taught": (lambda task, train: self_taught(task, train, BOTH), "convirt"),
    "chosen, taught": (recommended, "convirt"),
    "chosen, taught by pictures": (lambda task, train: recommended(task, train, ("picture",)), "convirt"),
    "chosen, taught, shuffled": (
        lambda task, train: recommended(task, train, ("picture_shuffled",)), "convirt_shuffled",
    ),
    "chosen, taught, as it comes": (recommended, "origin"),
}  # fmt: skip


DEPARTMENTS = ("Home", "Garden", "Seasonal", "Clearance", "Basics", "Premium")
NAMES = {  # what the class of a number is called, by the names of all
    "own": lambda number, names: names[number],
    "paths": lambda number, names: f"{DEPARTMENTS[number % len(DEPARTMENTS)]} / {names[number]}, Other {names[number]}",
    "codes": lambda number, names: f"Z{7919 * (number + 1) % 10007:05d}",
    "wrong": lambda number, names: names[(number + 1) % len(names)],
}


def labelled(catalogue: Catalogue, fraction: float, seed: int, names: str = "own") -> pd.DataFrame:
    """The labelled titles of a fraction of Train, and the names of all labels as titles: of `NAMES`, or "none"."""
    train, labels = train_subset(catalogue.part("train"), fraction, seed), catalogue.labels
    if names == "none":
        return train
    titles = named([NAMES[names](number, labels) for number in range(len(labels))])
    return pd.concat([train, titles.assign(label=labels)], ignore_index=True)


def on_dev(read: Read, catalogue: Catalogue, train: pd.DataFrame) -> tuple[float, float]:
    """Accuracy on Dev, and on its products of classes without a label in ``train``, of `labelled`; nan without any."""
    asked = catalogue.part("dev")
    right = np.array(catalogue.labels)[read(asked).argmax(axis=1)] == asked.label
    unseen = ~asked.label.isin(train.label[train.id.notna()])  # a name has no id
    return right.mean(), right[unseen].mean() if unseen.any() else np.nan


def dev(study: Study, out: Path, catalogue: Catalogue, way: str, fraction: float, seed: int, names: str):
    """`on_dev` of a way."""
    classifier, method = WAYS[way]
    adapted = str(path_of(out, "encoders", Run(catalogue.name, method, seed)))
    start = Start(study.text.model if method == "origin" else adapted, study.vision)
    train = labelled(catalogue, fraction, seed, names)
    return on_dev(classifier(Task(catalogue, study, start, seed), train), catalogue, train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--datasets", nargs="+", help="default: all of the study")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--names", default="own", choices=[*NAMES, "none"])
    options = parser.parse_args()
    out = options.run.resolve()
    study = resolved(load_config(options.config), out)
    with ROWS.open("a", newline="", encoding="utf-8", buffering=1) as file:
        for dataset in options.datasets or study.datasets:
            catalogue = open_catalogue(out / "catalogues" / dataset)
            for way, fraction, seed in (
                (w, f, s) for w in options.ways for f in options.fractions for s in options.seeds
            ):
                found = dev(study, out, catalogue, way, fraction, seed, options.names)
                way = way if options.names == "own" else f"{way}; names: {options.names}"
                row = [dataset, way, "labelled titles", fraction, seed, *(f"{value:.4f}" for value in found)]
                csv.writer(file, lineterminator="\n").writerow(row)
                print(*row)


if __name__ == "__main__":
    main()
