"""What a study costs, before it runs: steps, FLOPs and hours, measured on its titles and blank pictures (`make plan`).
Not counted: queues, pretraining (a minute), classifiers of frozen features, remedies of `finetune`, reading.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from icssl_lib import adapt, finetune
from icssl_lib.catalogue import load, split
from icssl_lib.config import Study
from icssl_lib.encoders import load_text, logits, tokenize
from icssl_lib.fast.cuda_graphs import Recorded, can_capture
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.methods import adapted_by, entry_of
from icssl_lib.paper import TABLE1
from icssl_lib.sources.synthetic import generic_titles
from icssl_lib.sources.synthetic.pretrain import loadable

JOB = 15  # seconds of a job beside its steps: mean of the quick study's (fine-tuning 3, adaptation 10, the explorer 70)


def products_of(name: str, study: Study, out: Path) -> pd.DataFrame:
    """title, label, part, image_row (-1: no picture), as ingested into ``out``, else as the source has them before
    cleaning; of Amazon's genres by the paper's Table 1."""
    if (ingested := out / "catalogues" / name / "products.parquet").is_file():
        return pd.read_parquet(ingested)
    genre = TABLE1[TABLE1.dataset == name]
    if study.datasets[name].source == "amazon" and len(genre):
        n, parts = genre.products.item(), [*5 * ["ssl"], *3 * ["train"], "dev", "test"]
        labels, titles = np.arange(n) % genre.classes.item(), np.resize(generic_titles(500, 0), n)
        return pd.DataFrame({"title": titles, "label": labels, "part": np.resize(parts, n), "image_row": 0})
    table = load(name, study.datasets[name]).table
    return table.assign(part=split(table, study.split_seed), image_row=np.where(table.image.fillna("") == "", -1, 0))


def trainings_of(study: Study, products: pd.DataFrame) -> list[tuple[str, str, str, int]]:
    """All that a dataset's jobs train: stage, method, kind (see `step_cost`; "": nothing), steps of all seeds."""
    rows, seeds = [("catalogue", "", "", 0), ("explore", "", "", 0)], len(study.seeds)
    for method in study.methods:
        entry, own = entry_of(study, method), study.of(method)
        if adapted_by(study, method) == method:
            pairs = (products.part == "ssl") & ((entry.pictures == "none") | (products.image_row >= 0))
            n = round(own.adapt.ssl_fraction * pairs.sum())
            batches = n // max(1, min(own.adapt.batch_size, n))
            rows.append(("adapt", method, method, seeds * own.adapt.epochs * batches))
        config = own.finetune
        names = products.label.nunique() * (entry.names or config.label_names)
        labelled = [int(np.ceil(f * (products.part == "train").sum())) + names for f in config.fractions]
        steps = seeds * sum(config.steps(n)[1] for n in labelled)
        trains = entry.classifier == "finetune" and not config.features
        rows.append(("finetune", method, *(("finetune", steps) if trains else ("", 0))))
    return rows


def step_cost(study: Study, kind: str, titles: list[str]) -> tuple[float, float]:
    """FLOPs and seconds (NaN: its GPU is not here) of a step. kind: a method that adapts, or "finetune"."""
    own, absent = study.of(kind), study.runtime.device == "cuda" and not torch.cuda.is_available()
    runtime = study.runtime.model_copy(update={"device": "cpu", "precision": "no"} if absent else {})
    accelerator, adapts = make_accelerator(runtime), kind != "finetune"
    n, size = (own.adapt if adapts else own.finetune).batch_size, own.vision.image_size
    tokens = tokenize(load_text(own.text.model, own.text.max_tokens)[1], titles[:n], own.text.max_tokens)
    if adapts:
        entry = entry_of(study, kind)
        model, loss_fn = adapt.build(own, entry)[0], partial(entry.loss, config=own.adapt)
        frozen = model.vision and model.vision.frozen
        shape = (n, model.vision.width) if frozen else (n, size, size, 3)
        batch = tokens | {"images": torch.zeros(shape, dtype=torch.float32 if frozen else torch.uint8)}
    else:
        model, batch = finetune.build(own.text.model, ["a", "b"], own)[0], tokens
        loss_fn = lambda model, batch: logits(model, batch).mean()  # noqa: E731
    model, plain = model.to(accelerator.device), partial(adapt.plain_step, accelerator=accelerator)
    optimizer = adapt.prepared(torch.optim.AdamW, model, own.adapt, accelerator)
    train = partial(adapt.train, model, loss_fn=loss_fn, optimizer=optimizer, history=[])
    clock = time.perf_counter if accelerator.device.type == "cuda" else lambda: time.process_time() / runtime.threads
    with fast(model, runtime.fast) as packing:
        with FlopCounterMode(display=False) as counter:
            train([(0, {name: rows[:4] for name, rows in batch.items()})], step=plain)
        step = Recorded(plain, model.parameters(), packing, accelerator.device, can_capture(runtime, accelerator))
        seconds = np.nan
        for steps in () if absent else (3, 10):  # the first fill caches
            began = clock()
            train([(0, batch)] * steps, step=step)
            seconds = (clock() - began) / steps
    return counter.get_total_flops() * n / min(n, 4), seconds


def plan(study: Study, out: Path, cores: int) -> pd.DataFrame:
    """One row per stage and method: jobs (``cores`` of them at a time), steps, flops, hours (NaN: its GPU is not here);
    ``attrs["hours"]``: from start to end. ``out``: where data may be ingested."""
    keys, data = ["stage", "method"], {name: products_of(name, study, out) for name in study.datasets}
    rows = [(name, *training) for name, products in data.items() for training in trainings_of(study, products)]
    own = [("", "pretrain", what, "", 0) for what in ("text", "vision") if getattr(study, what).model == "pretrained"]
    table = pd.DataFrame([*rows, *own, ("", "report", "", "", 0)], columns=["dataset", *keys, "kind", "steps"])
    most = max(512, *(study.of(method).adapt.batch_size for method in study.methods))
    titles = list(pd.concat([products.title for products in data.values()]).sample(most, replace=True, random_state=0))
    with tempfile.TemporaryDirectory() as folder:
        made = loadable(study, Path(folder))
        costs = {kind: step_cost(made, kind, titles) for kind in table.kind.unique() if kind} | {"": (0, 0)}
    table["flops"], table["seconds"] = (table.steps * [costs[kind][i] for kind in table.kind] for i in (0, 1))
    jobs = table.groupby([*keys, "dataset"], sort=False)[["steps", "flops", "seconds"]].sum(skipna=False)
    jobs["hours"] = (jobs.pop("seconds") / study.runtime.processes + JOB) / 3600
    longest = jobs.hours.groupby(level="stage").max().sum()  # a job of each stage, one after the other
    stages = jobs.assign(jobs=1).groupby(keys, sort=False)[["jobs", *jobs]].sum(skipna=False).reset_index()
    stages.attrs["hours"] = np.maximum(longest, jobs.hours.sum(skipna=False) / cores)
    return stages


def show(plan: pd.DataFrame) -> str:
    """The plan as text."""
    hours, table = plan.attrs["hours"], plan.to_string(index=False, float_format="{:.3g}".format)
    took = "Hours: call `make plan` where there is a GPU" if np.isnan(hours) else f"{hours:.2f} hours from start to end"
    return f"{table}\n\n{plan.jobs.sum()} jobs, {plan.steps.sum()} steps, {plan.flops.sum():.2e} FLOPs. {took}"
