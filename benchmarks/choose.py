"""Compare settings on Dev; Test is not looked at. Appends to choices.csv what it found, whatever it is.

python benchmarks/choose.py config/quick.yaml --methods origin convirt --try adapt.epochs=8 --try adapt.epochs=12

Each --try holds settings that replace the file's, separated by blanks. Catalogues and pretrained encoders are those
of the run folder, so begin the study first. Adapted encoders are kept in runs/<study>/choices.
"""

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import yaml

from icssl_lib.adapt import adapt, save
from icssl_lib.catalogue import open_catalogue
from icssl_lib.classify import classify
from icssl_lib.config import Run, Study, load_config
from icssl_lib.finetune import Start
from icssl_lib.methods import adapted_by, entry_of
from icssl_lib.runs import digest, resolved

CHOICES = Path(__file__).with_name("choices.csv")


def changed(path: Path, settings: str) -> Study:
    """The study of a file with settings such as ``adapt.lr=1e-4 finetune.epochs=5`` in place of its own."""
    raw = load_config(path).model_dump()
    for setting in settings.split():
        key, value = setting.split("=")
        section, name = key.split(".")
        raw[section][name] = yaml.safe_load(value)
    return Study.model_validate(raw)


def adapted(study: Study, run: Run, out: Path) -> Path:
    """The folder of a run's encoder, adapted where it was not yet, as is the one that it starts from."""
    key = digest(study.adapt, study.vision, study.text, study.runtime)
    encoder = out / "choices" / f"{run.dataset}-{run.method}-{run.seed}-{key}"
    if not (encoder / "config.json").is_file():
        if after := entry_of(study, run.method).after:
            study = study.starting_from(adapted(study, replace(run, method=after), out))
        save(adapt(run, open_catalogue(out / "catalogues" / run.dataset), study, progress=False), encoder)
    return encoder


def dev_accuracy(study: Study, choice: str, run: Run, fractions: list[float]) -> list[dict]:
    """One encoder of one seed, adapted where it was not yet, and its classifiers' accuracy on Dev."""
    out = Path("runs") / study.study
    catalogue, study = open_catalogue(out / "catalogues" / run.dataset), resolved(study, out)
    encoder, towers = Path(study.text.model), None
    if made_by := adapted_by(study, run.method):
        encoder = adapted(study, replace(run, method=made_by), out)
        towers = encoder / "towers.safetensors" if entry_of(study, run.method).uses_images else None
    start = Start(str(encoder), study.vision, towers)
    keys = {"catalogue": f"{study.study} {run.dataset}", "method": run.method, "choice": choice, "seed": run.seed}
    return [
        keys | {"fraction": f, "dev_accuracy": classify(run, f, catalogue, study, start).scores["dev_accuracy"]}
        for f in fractions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--try", dest="tries", action="append", required=True, metavar="SETTINGS")
    parser.add_argument("--methods", nargs="+", default=["origin", "convirt"])
    parser.add_argument("--datasets", nargs="+", help="default: all")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.05, 0.25, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    datasets = options.datasets or list(changed(options.config, "").datasets)
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(
                dev_accuracy,
                changed(options.config, settings),
                settings,
                Run(dataset, method, seed),
                options.fractions,
            )
            for seed in options.seeds
            for settings in options.tries
            for dataset in datasets
            for method in options.methods
        ]
        for future in futures:
            rows += future.result()
            print(*rows[-len(options.fractions) :], sep="\n", flush=True)
    keys = ["catalogue", "method", "choice", "fraction"]
    table = pd.DataFrame(rows).groupby(keys, sort=False).dev_accuracy.agg(seeds="count", dev_accuracy="mean")
    table = table.round(3).reset_index()
    print(table.to_string(index=False))
    with CHOICES.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table.itertuples(index=False))


if __name__ == "__main__":
    main()
