"""Predictions and run folders with numbers that are drawn: nothing is trained."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import report

from icssl_lib import metrics
from icssl_lib.catalogue import ingest
from icssl_lib.config import Run, Study
from icssl_lib.dag import ROOT
from icssl_lib.runs import path_of

METHODS = {"origin": 0.4, "simcse": 0.4, "convirt": 0.7, "tfidf": 0.5}  # with the share of items each gets right


def predictions(label, by_method, dataset="d", fraction=0.05):
    """Predictions as the run stores them; ``by_method``: method -> one list of predictions per seed."""
    ids = [f"i{k:04d}" for k in range(len(label))]
    frames = [
        pd.DataFrame({"id": ids, "label": label, "predicted": predicted}).assign(method=method, seed=seed)
        for method, seeds in by_method.items()
        for seed, predicted in enumerate(seeds)
    ]
    return pd.concat(frames, ignore_index=True).assign(dataset=dataset, fraction=fraction)


def seed_weights(stream: int, n: int, seeds: int) -> list[list[np.ndarray]]:
    """The library's draws of the seeds' part by its definition: for each of n resamples ten weightings of the seeds, by
    which the sum of values x is their mean + t sd / sqrt(seeds)."""
    rng = np.random.default_rng([stream, 1])
    normal, chi2 = rng.standard_normal((n, 10, seeds)), rng.chisquare(seeds - 1, (n, 10))
    return [
        [1 / seeds + (z - z.mean()) / math.sqrt(seeds * c) for z, c in zip(*each, strict=True)]
        for each in zip(normal, chi2, strict=True)
    ]


def run_folder(study: Study, out: Path, methods: dict[str, float] = METHODS) -> None:
    """Fill a run folder with numbers that are drawn."""
    rng, rows = np.random.default_rng(0), []
    for dataset, (method, right) in product(study.datasets, methods.items()):
        folder = out / "catalogues" / dataset
        if not folder.exists():
            catalogue = ingest(dataset, study.datasets[dataset], 32, study.split_seed, folder, progress=False)
            test = catalogue.part("test")
            head, tail = report.heads_and_tails(out, [dataset])[dataset]
        for seed in study.seeds:
            keys, frames = {"dataset": dataset, "method": method, "seed": seed}, []
            for fraction in study.finetune.fractions:
                hit = rng.random(len(test)) < right * (0.7 + 0.3 * fraction)
                guess = rng.choice(catalogue.labels, len(test))
                predicted = np.where(hit, test["label"].to_numpy(str), guess)
                frame = test[["id", "label"]].assign(predicted=predicted, confidence=0.5, fraction=fraction, **keys)
                frames.append(frame)
                scores = metrics.scores(frame["label"], predicted, head, tail)
                rows.append(keys | scores | {"fraction": fraction, "n_train": 9, "split_hash": "0", "seconds": 1.0})
            path = path_of(out, "predictions", Run(**keys)).with_suffix(".parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.concat(frames).to_parquet(path)
            path = path_of(out, "records", Run(**keys)).with_suffix(".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": {"cpu": "Abacus <9000>", "cores": 4}}))
            if method in ("simcse", "convirt"):
                path = path_of(out, "encoders", Run(**keys))
                path.mkdir(parents=True)
                steps = np.arange(200)
                history = pd.DataFrame({"step": steps, "epoch": 0, "loss": 3 - steps / 100, "seconds": steps})
                history.to_csv(path / "history.csv", index=False)
                space = [("title uniformity", "before", -1.0), ("title uniformity", "after", -2.0)]
                pd.DataFrame(space, columns=["measure", "when", "value"]).to_csv(path / "space.csv", index=False)
    pd.DataFrame(rows).to_csv(out / "results.csv", index=False)


def class_scores(predicted: pd.DataFrame) -> pd.DataFrame:
    """The table of classes as notebook 05 makes it of predictions."""
    cells = json.loads((ROOT / "notebooks/05_figure5.ipynb").read_text("utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "formulas" in "".join(cell["source"]))
    space = {"pd": pd, "predicted": predicted}
    exec(source.replace("report.read_predictions(out, results)", "predicted"), space)
    return space["classes"].reset_index()
