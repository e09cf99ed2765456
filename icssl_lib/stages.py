"""The two stages as jobs: adapt, and fine-tune, for the seeds of a method on a dataset, each finished piece kept.

A killed job goes on from its finished pieces; a study with one more seed or fraction trains that alone."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import transformers
from tqdm.auto import tqdm

from icssl_lib.adapt import adapt, save
from icssl_lib.catalogue import Catalogue
from icssl_lib.classify import classify
from icssl_lib.config import Run, Study
from icssl_lib.fast.processes import precision_here
from icssl_lib.files import damaged, folder_written_whole
from icssl_lib.finetune import Start
from icssl_lib.methods import adapted_by, entry_of
from icssl_lib.runs import digest, path_of, resolved, save_record

transformers.logging.disable_progress_bar()  # one for each of dozens of models that are loaded
transformers.logging.set_verbosity_error()  # that a classifier's last layer is new is no news


def start_of(run: Run, study: Study, out: Path) -> Start:
    """What the classifier of a run begins from: an adapted encoder, with its vision tower, or the study's own."""
    own, made_by = resolved(study.of(run.method), out), adapted_by(study, run.method)
    if made_by is None:
        return Start(own.text.model, own.vision)
    encoder = path_of(out, "encoders", replace(run, method=made_by))
    towers = encoder / "towers.safetensors" if entry_of(study, run.method).uses_images else None
    return Start(str(encoder), own.vision, towers)


def piece_of(run: Run, fraction: float | None, start: Start, catalogue: Catalogue, study: Study, out: Path) -> Path:
    """The folder of a finished piece: an encoder (``fraction`` is None), or a classifier on that fraction of Train.
    Its name holds a hash of all it depends on: settings, data, and when each file that it is made from was written."""
    own = study.of(run.method)
    name, stage = ("encoder", "adapt") if fraction is None else (f"f{100 * fraction:03g}", "finetune")  # f005, f100
    settings = own.model_dump(mode="json", include={"text", "vision", "runtime", stage})
    if fraction is not None:
        kept = fraction in own.finetune.keep_classifiers and "with idf"  # earlier pieces hold other ones, or none
        settings[stage] |= {"fractions": None, "keep_classifiers": kept}
    models = start.encoder, start.vision.model.removeprefix("local-dir:")
    files = [catalogue.folder / "catalogue.json", *(Path(model, "model.safetensors") for model in models)]
    made = [path.stat().st_mtime_ns if path.is_file() else None for path in files]  # None: a model of a hub
    key = digest(str(run), fraction, settings, precision_here(own.runtime), catalogue.split_hash, made)
    return path_of(out, "pieces", run) / f"{name}-{key}"


@contextmanager
def finishing(piece: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that becomes ``piece`` when the block ends without an error, and a file for the state of its training.
    Then that file, what kills have left and what was made with other settings are removed."""
    with folder_written_whole(piece) as part:
        yield part, piece.with_name(f"{piece.name}.pt")
    for other in piece.parent.glob(f"{piece.name.split('-')[0]}-*"):
        if other != piece:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


def adapt_seeds(
    dataset: str, method: str, seeds: list[int], catalogue: Catalogue, study: Study, out: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Adapt the encoder once with each seed, unless that is finished, and keep it in ``encoders/``.

    Returns: history: step, epoch, loss, seconds, seed. space: measure, value, when, seed."""
    pieces, after = {}, entry_of(study, method).after
    for run in (Run(dataset, method, seed) for seed in seeds):
        own = resolved(study, out)
        if after:
            own = own.starting_from(path_of(out, "encoders", replace(run, method=after)))
        start = Start(own.of(method).text.model, own.of(method).vision)
        piece = pieces[run] = piece_of(run, None, start, catalogue, study, out)
        if not piece.is_dir() or damaged(piece):
            with finishing(piece) as (folder, state):
                save(adapt(run, catalogue, own, state), folder)
    for run, piece in pieces.items():  # at the end: when a job fails, Snakemake removes what it was to leave
        with folder_written_whole(path_of(out, "encoders", run)) as part:
            try:  # without taking twice the disk, where links are possible
                shutil.copytree(piece, part, copy_function=os.link, dirs_exist_ok=True)
            except OSError:
                shutil.copytree(piece, part, dirs_exist_ok=True)
    history, space = (
        pd.concat([pd.read_csv(piece / name).assign(seed=run.seed) for run, piece in pieces.items()], ignore_index=True)
        for name in ("history.csv", "space.csv")
    )
    return history, space


def classify_seeds(
    dataset: str, method: str, seeds: list[int], catalogue: Catalogue, study: Study, out: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the classifier with each seed on each fraction of Train, unless that is finished; write each seed's record.

    Returns: scores: one row per seed and fraction: dataset, method, fraction, seed, n_train, the metrics on Test,
    dev_accuracy, test_readings, seconds. predictions: one row per seed, fraction and product of Test: dataset, method,
    fraction, seed, id, label, predicted, confidence."""
    fractions, scores, tables = study.of(method).finetune.fractions, [], []
    with tqdm(desc=f"{dataset} {method}", total=len(seeds) * len(fractions), unit="classifier") as bar:
        for run in (Run(dataset, method, seed) for seed in seeds):
            start, pieces = start_of(run, study, out), []
            for fraction in fractions:
                pieces.append(piece_of(run, fraction, start, catalogue, study, out))
                if not pieces[-1].is_dir() or damaged(pieces[-1]):
                    with finishing(pieces[-1]) as (folder, state):
                        _classify(run, fraction, start, catalogue, study, out, folder, state)
                bar.update()
            rows = [json.loads((piece / "scores.json").read_text()) for piece in pieces]
            table = pd.concat([pd.read_parquet(piece / "predictions.parquet") for piece in pieces], ignore_index=True)
            found = {"split_hash": catalogue.split_hash, "fractions": rows, "precision": precision_here(study.runtime)}
            save_record(run, study, out, found, table)
            scores += rows
            tables.append(table)
    return pd.DataFrame(scores), pd.concat(tables, ignore_index=True)


def _classify(
    run: Run, fraction: float, start: Start, catalogue: Catalogue, study: Study, out: Path, folder: Path, state: Path
) -> None:
    """Train one classifier, and leave in ``folder`` scores.json, predictions.parquet and, if it is kept, classifier."""
    begun = time.perf_counter()
    keep = folder / "classifier" if fraction in study.of(run.method).finetune.keep_classifiers else None
    read = classify(run, fraction, catalogue, resolved(study, out), start, keep, state)
    keys = {"dataset": run.dataset, "method": run.method, "fraction": fraction, "seed": run.seed}
    row = keys | read.scores | {"seconds": round(time.perf_counter() - begun, 2)}
    (folder / "scores.json").write_text(json.dumps(row))
    table = read.predictions.assign(**keys)[[*keys, "id", "label", "predicted", "confidence"]]
    table.to_parquet(folder / "predictions.parquet", index=False)
