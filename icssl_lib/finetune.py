"""The supervised stage: a classifier on a fraction of Train, all weights trained, and its reading of Test."""

import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, normalize, one_hot
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

from icssl_lib.adapt import make_accelerator, path_here, text_model, vision_model
from icssl_lib.catalogue import Catalogue, head_tail, train_subset
from icssl_lib.config import Study, VisionConfig
from icssl_lib.encoders import (
    ModelError,
    TextTower,
    VisionTower,
    embed_titles,
    load_text,
    load_vision,
    mean_pool,
    save_pretrained,
    take,
    tokenize,
)
from icssl_lib.fast import fast, narrowed
from icssl_lib.graphs import Replay, can_capture
from icssl_lib.images import ImageStore, written_whole
from icssl_lib.lexical import Lexical, geometric_mean
from icssl_lib.methods import adapted_by, entry_of, trained_alike, trainings
from icssl_lib.metrics import scores as metrics_of
from icssl_lib.runs import digest, piece
from icssl_lib.scale import START, Checkpoint, batches_left, in_processes, local_rows, sum_gradients

Read = Callable[[pd.DataFrame], np.ndarray]  # products to probabilities of the catalogue's labels, float64 (N, C)


@dataclass
class Classified:
    """One classifier's reading. predictions: id, label, predicted, confidence of Test; n_train: labels used;
    test_readings: how often Test was handed out for it."""

    predictions: pd.DataFrame
    n_train: int
    dev_accuracy: float
    test_readings: int


@dataclass(frozen=True)
class Fit:
    """What one training is given. kind: "finetune" reads titles; "image" pictures (each product of ``train`` has one);
    "joint" both. path: file for the state of a long training, of which ``key`` says what it depends on; None: no file.
    """

    kind: str
    train: pd.DataFrame
    catalogue: Catalogue
    study: Study
    seed: int
    path: Path | None
    key: str


class MeanPooledClassifier(nn.Module):
    """The variant ``finetune.head: mean``: a linear layer on mean-pooled tokens. Call: -> logits (N, C)."""

    def __init__(self, encoder: str, n_labels: int) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(encoder, dtype=torch.float32)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(self.backbone.config.hidden_size, n_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.classifier(self.dropout(mean_pool(hidden, attention_mask)))


class LookingClassifier(nn.Module):
    """A linear layer on a picture's pooled features, or on a title's and its picture's side by side.

    Call: pixels uint8 (N, S, S, 3), shown bool (N,), and tokens (N, T) where there is a text tower -> logits (N, C).
    A product without a picture has zeros for its picture's features.
    """

    def __init__(self, text: TextTower | None, vision: VisionTower, n_labels: int) -> None:
        super().__init__()
        self.text, self.vision = text, vision
        width = vision.backbone.num_features + (text.backbone.config.hidden_size if text else 0)
        self.classifier = nn.Linear(width, n_labels)

    def forward(self, pixels: Tensor, shown: Tensor, **tokens: Tensor) -> Tensor:
        features = self.vision.embed(pixels) * shown[:, None]  # (N, F)
        if self.text:
            features = torch.cat([self.text.embed(**tokens), features], dim=1)
        return self.classifier(features)


class Pictures:
    """Pictures of products by position, as `LookingClassifier` takes them; pixels of one that has none are any."""

    def __init__(self, products: pd.DataFrame, store: ImageStore, device: torch.device) -> None:
        self.rows, self.store, self.device = products.image_row.to_numpy(), store, device

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        rows = self.rows[index.numpy()]
        pixels, shown = torch.tensor(self.store[np.maximum(rows, 0)]), torch.tensor(rows >= 0)
        return {"pixels": pixels.to(self.device), "shown": shown.to(self.device)}


def classify_fractions(
    method: str, catalogue: Catalogue, study: Study, seed: int, out: Path, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`classify_fractions_here` in as many processes as the study asks for."""
    return in_processes(study.runtime, classify_fractions_here, method, catalogue, study, seed, out, progress)


def classify_fractions_here(
    method: str, catalogue: Catalogue, study: Study, seed: int, out: Path, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The method's classifiers on every fraction of Train, from the encoder that the run folder holds.

    A fraction that is finished is not trained again when the stage was killed in a later one. What several methods of
    the study train alike is trained once: its weights lie in ``trainings`` until the last of them has its record.

    Returns:
        scores: one row per fraction: dataset, method, fraction, seed, n_train, the metrics on Test, dev_accuracy,
            test_readings, seconds. predictions: one row per fraction and Test item: dataset, method, fraction, seed,
            id, label, predicted, confidence.
    """
    made_by, entry, users = adapted_by(study, method), entry_of(study, method), trained_alike(study, method)
    alike = out / "trainings" / catalogue.name / f"seed{seed}"
    folders = {role: alike / digest(trainings(study, method)[role]) for role in users}
    study = study.of(method)
    vision = vision_model(study, out)
    encoder = str(piece(out, "encoders", catalogue.name, made_by, seed)) if made_by else text_model(study, out)
    towers = Path(encoder, "towers.safetensors") if made_by and entry.looks else None
    head, tail = head_tail(catalogue.label_counts)
    # Labels that Train does not hold are of the tail: no classifier can name them.
    tail = tail + sorted(set(catalogue.part("test").label) - set(catalogue.label_counts.index))
    scores, tables = [], []
    unfinished = piece(out, "checkpoints", catalogue.name, method, seed)
    ingested, made = _written(catalogue.folder / "catalogue.json"), _written(Path(encoder, "model.safetensors"))
    local = Path(vision.model.removeprefix("local-dir:"), "model.safetensors")
    shown = (vision, _written(local)) if entry.looks else ()
    # What each training starts from; pictures alone have no use for an encoder of titles, but for its adapted towers.
    start = {"finetune": (encoder, made), "image": (*shown, made) if towers else shown}
    main = int(os.environ.get("RANK", 0)) == 0
    bar = f"{catalogue.name} {method} seed {seed}"
    for fraction in tqdm(study.finetune.fractions, desc=bar, disable=not (progress and main)):
        name = f"f{100 * fraction:03g}"  # f005, f100; f0.4 for four thousandths
        settings = study.text, study.finetune, *path_here(study.runtime)
        parts = (method, seed, fraction, *settings, encoder, made, *entry.recipe)
        key = digest(*parts, catalogue.split_hash, ingested, *shown)
        finished = unfinished / f"{name}.parquet"
        if finished.is_file() and (table := pd.read_parquet(finished)).attrs["key"] == key:
            scores.append(table.attrs["scores"])
            tables.append(table)
            continue
        keep = None
        if fraction in study.finetune.keep_classifiers:
            keep = piece(out, "classifiers", catalogue.name, method, seed) / name
        started = time.perf_counter()
        checkpoint = unfinished / f"{name}.pt"
        given = fraction, study.runtime, *path_here(study.runtime), catalogue.split_hash, ingested
        shared = {
            role: folder / f"{name}-{digest(*given, *start.get(role, (encoder, made, *shown)))}.safetensors"
            for role, folder in folders.items()
        }
        read = classify(
            method, encoder, catalogue, study, fraction, seed, keep, checkpoint, key, vision, towers, shared
        )
        seconds = round(time.perf_counter() - started, 2)
        keys = {"dataset": catalogue.name, "method": method, "fraction": fraction, "seed": seed}
        metrics = metrics_of(read.predictions.label, read.predictions.predicted, head, tail)
        rest = {"dev_accuracy": read.dev_accuracy, "test_readings": read.test_readings, "seconds": seconds}
        scores.append(keys | {"n_train": read.n_train, **metrics, **rest})
        tables.append(read.predictions.assign(**keys)[[*keys, "id", "label", "predicted", "confidence"]])
        if main:
            unfinished.mkdir(parents=True, exist_ok=True)
            tables[-1].attrs = {"key": key, "scores": scores[-1]}
            with written_whole(finished) as path:
                tables[-1].to_parquet(path, index=False)
            checkpoint.unlink(missing_ok=True)
    for table in tables:
        table.attrs = {}
    if main:
        shutil.rmtree(unfinished, ignore_errors=True)
        for role, folder in folders.items():
            records = [piece(out, "records", catalogue.name, m, seed) for m in users[role] if m != method]
            _clear(folder, [path.with_suffix(".json") for path in records])
    return pd.DataFrame(scores), pd.concat(tables, ignore_index=True)


def _written(path: Path) -> int | None:
    """When a file was written, for one made anew is another; None where there is none (a hub's name)."""
    return path.stat().st_mtime_ns if path.is_file() else None


def _clear(folder: Path, records: list[Path]) -> None:
    """Remove the weights that ``folder`` holds if nobody is left to read them: each of the records, of the others that
    train alike, is newer. (`runs.collect` removes what two that end at once leave to each other.)"""
    newest = max((_written(path) for path in folder.glob("*.safetensors")), default=0)
    if all((_written(path) or 0) > newest for path in records):
        shutil.rmtree(folder, ignore_errors=True)


def classify(
    method: str,
    encoder: str,
    catalogue: Catalogue,
    study: Study,
    fraction: float,
    seed: int,
    keep: Path | None = None,
    checkpoint: Path | None = None,
    key: str = "",
    vision: VisionConfig | None = None,
    towers: Path | None = None,
    shared: dict[str, Path] | None = None,
) -> Classified:
    """Train the method's classifier on a nested fraction of Train, then read Test once.

    Args:
        method: a name in METHODS, or a variant of one.
        encoder: folder or hub name of the text encoder to start from (unused by TF-IDF).
        catalogue: Train and Dev are trained and selected on.
        fraction: in (0, 1], of Train; the same seed draws the same products for every method.
        keep: folder to save the classifier to, as a plain Hugging Face folder; one that sees pictures is not kept.
        checkpoint: file for the state of a long training, which a killed call goes on from.
        key: of what the training depends on; a state with another key is ignored.
        vision: the vision tower to start from, where pictures are seen; None: the study's, which must not be
            "pretrained" then.
        towers: file of adapted towers (`adapt.save`) whose vision backbone is started from instead.
        shared: of `methods.trainings`, the files of those that other methods of the study train too: read where they
            are there, else written.

    Raises: ValueError: the classifier needs pictures, and the catalogue has none.
    """
    entry, study, labels = entry_of(study, method), study.of(method), catalogue.labels
    before = catalogue.handed["test"]
    train = train_subset(catalogue.part("train"), fraction, seed)
    if study.finetune.label_noise:
        train = train.assign(label=flipped(train.label, labels, study.finetune.label_noise, seed))
    n_train = len(train)
    if study.finetune.label_names or entry.names:
        train = pd.concat([train, named(labels)], ignore_index=True)
    if entry.looks and catalogue.images is None:
        raise ValueError(f"{catalogue.name} has no pictures; '{method}' needs them")

    def fit(kind: str, train: pd.DataFrame, path: Path | None, **options: Any) -> Read:
        looking = vision or study.vision, towers
        weights = (shared or {}).get("student" if "soft" in options else kind)
        given = Fit(kind, train, catalogue, study, seed, path, key)
        return _finetune(given, encoder, looking, shared=weights, **options)

    words = None
    if entry.classifier == "tfidf" or entry.lexical:
        words = Lexical.fit(list(train.title), list(train.label), labels)
    if entry.classifier == "tfidf":
        read = _words_of(words)
    elif entry.classifier == "knn":
        read = _knn(encoder, train, catalogue, study)
    elif entry.classifier == "image":
        read = _image(fit, train, catalogue, checkpoint)
    elif entry.classifier == "late":
        read = _late(fit, train, catalogue, checkpoint)
    elif entry.classifier == "distilled":
        read = _distilled(fit, entry.teacher, train, catalogue, checkpoint, keep)
    else:
        read = fit(entry.classifier, train, checkpoint, keep=keep if entry.classifier == "finetune" else None)
    if entry.lexical:
        read = _together(read, _words_of(words))
        if keep is not None and PartialState().is_main_process:
            words.save(keep)
    dev = catalogue.part("dev")
    dev_accuracy = _accuracy(read(dev), dev, labels)
    test = catalogue.part("test")
    found = _as_table(test, labels, read(test))
    return Classified(found, n_train, dev_accuracy, catalogue.handed["test"] - before)


def named(labels: list[str]) -> pd.DataFrame:
    """Each label's name, its separators made blanks, as a title of that label: title, label, image_row (-1).

    A shop knows what its categories are called before it has labelled anything; a classifier of few labels does not.
    """
    titles = [" ".join(re.split(r"[\W_]+", label)).strip() or label for label in labels]
    return pd.DataFrame({"title": titles, "label": labels, "image_row": -1})


def flipped(label: pd.Series, labels: list[str], share: float, seed: int) -> pd.Series:
    """Labels of which each is, with probability ``share``, another one of ``labels``, drawn uniformly: symmetric noise.

    The draw is of the seed and the position alone, so all methods get the same wrong labels, and a nested fraction
    those of the larger ones.

    Args: label: (N,), each in ``labels``. share: in [0, 1). Returns: (N,).
    Raises: ValueError: fewer than two labels to choose from.
    """
    if len(labels) < 2:
        raise ValueError("finetune.label_noise needs two classes or more: a wrong label is one of another class")
    at = pd.Index(labels).get_indexer(label)
    wrong = np.random.default_rng([seed, 3]).random(len(label)) < share
    step = np.random.default_rng([seed, 4]).integers(1, len(labels), len(label))
    return pd.Series(np.array(labels, dtype=object)[np.where(wrong, (at + step) % len(labels), at)], label.index)


def _finetune(
    given: Fit,
    encoder: str,
    looking: tuple[VisionConfig, Path | None],
    keep: Path | None = None,
    soft: Callable[[], np.ndarray] | None = None,
    shared: Path | None = None,
) -> Read:
    """Cross-entropy on all weights with Adam (Chen & Chou, 2022, section 4).

    looking: the vision tower and, if its backbone was adapted, the file that holds it. soft: yields a teacher's
    probabilities of the SSL part's products, float32 (M, C), which are trained on beside ``train``. shared: file for
    the weights, where other methods of the study train the same; if it is there, nothing is trained, nor is a teacher.
    """
    kind, catalogue, study, config = given.kind, given.catalogue, given.study, given.study.finetune
    if kind == "joint" and config.uda_weight:
        raise ValueError("finetune.uda_weight: it replaces words of titles, and joint fusion reads pictures too; set 0")
    if soft is not None and config.imbalance in ("class_balanced", "two_stage"):
        raise ValueError(f"finetune.imbalance: {config.imbalance}: a teacher's probabilities are of no one class")
    accelerator = make_accelerator(study.runtime)
    trained = broadcast_object_list([shared is not None and shared.is_file()])[0]  # as the first process sees it
    taught = soft() if soft and not trained else None
    set_seed(given.seed)
    tokenizer = None if kind == "image" else AutoTokenizer.from_pretrained(encoder)
    model = _untrained(kind, encoder, looking, catalogue.labels, study).to(accelerator.device)

    def pictures(products: pd.DataFrame) -> Pictures | None:
        return None if kind == "finetune" else Pictures(products, catalogue.images, accelerator.device)

    def read(products: pd.DataFrame) -> np.ndarray:
        with fast(model, study.runtime.fast):
            return predict(model, tokenizer, list(products.title), study, accelerator, pictures(products))

    if trained:
        load_weights(model, shared)
        accelerator.wait_for_everyone()  # before the first may remove the file
    else:
        _train(given, model, tokenizer, read, pictures(given.train), taught, accelerator)
    if accelerator.is_main_process:
        if shared is not None and not trained:
            save_weights(model, shared)
        if keep is not None:
            tokenizer.model_max_length = study.text.max_tokens
            save_pretrained(model, tokenizer, keep)
    return read


def _untrained(
    kind: str, encoder: str, looking: tuple[VisionConfig, Path | None], labels: list[str], study: Study
) -> nn.Module:
    """The classifier that `_finetune` trains: adapted weights below a last layer that is drawn anew, on the CPU.

    Raises: ModelError: no such encoder or tower.
    """
    if kind != "finetune":
        pooling = study.text.pooling
        text = None if kind == "image" else TextTower(load_text(encoder)[0], pooling, projection_dim=1, depth=0)
        vision = VisionTower(load_vision(looking[0]), 1, depth=0, size=looking[0].image_size)
        if looking[1]:
            vision.backbone.load_state_dict(adapted_backbone(looking[1]))
        return LookingClassifier(text, vision, len(labels))
    if study.finetune.head == "mean":
        return MeanPooledClassifier(encoder, len(labels))
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=len(labels), dtype=torch.float32, **names
    )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights (safetensors) whole, also where another process writes the same file at this moment.

    Raises: OSError: they cannot be written (a full disk); no half-written file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        save_model(model, f"{folder}/weights")
        os.replace(f"{folder}/weights", path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Replace a model's weights by those of a file.

    Raises: OSError: the file is damaged, or of another model.
    """
    try:
        load_model(model, path)
    except (SafetensorError, RuntimeError) as error:
        what = str(error).splitlines()[0]
        raise OSError(f"{path}: the weights cannot be read ({what}); delete it to train them anew") from error


def _train(
    given: Fit,
    model: nn.Module,
    tokenizer,
    read: Read,
    shown: Pictures | None,
    soft: np.ndarray | None,
    accelerator: Accelerator,
) -> None:
    """The training of `_finetune`, in place; it goes on from the checkpoint at ``path``.

    Args: read: the model's reading, for ``selection: best_dev``. shown: pictures of ``train``, of a ``kind`` that sees
        them. soft: a teacher's probabilities of the SSL part's products, float32 (M, C), or None.
    Raises: FloatingPointError: the loss is not finite. OSError: the checkpoint cannot be read or written.
    """
    kind, train, catalogue, study = given.kind, given.train, given.catalogue, given.study
    config, labels, dev, device = study.finetune, catalogue.labels, catalogue.part("dev"), accelerator.device
    if kind == "image":
        dev = dev[dev.image_row >= 0].reset_index(drop=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    target = torch.tensor(pd.Index(labels).get_indexer(train.label))
    prior = (target.bincount(minlength=len(labels)) + 1).log().to(device)  # one more each: no class is impossible
    if soft is not None:
        train = pd.concat([train, catalogue.part("ssl").drop(columns="label")], ignore_index=True)
        target = torch.cat([one_hot(target, len(labels)).float(), torch.from_numpy(soft)])  # (N + M, C)
    epochs, steps = config.steps(len(train))
    first = epochs  # epochs of the first stage; the second trains the last layer on balanced classes
    if config.imbalance == "two_stage":
        epochs, steps = 2 * epochs, 2 * steps
    schedule = get_scheduler(config.schedule, optimizer, round(config.warmup * steps), steps)
    optimizer = accelerator.prepare(optimizer)
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    minutes = study.runtime.checkpoint_minutes
    checkpoint = Checkpoint(given.path, minutes, given.key, accelerator, **state) if given.path else None
    wants_more = tokenizer is not None and config.uda_weight > 0
    tokens = tokenize(tokenizer, list(train.title), study.text.max_tokens) if tokenizer else None
    unlabelled = tokenize(tokenizer, list(catalogue.part("ssl").title), study.text.max_tokens) if wants_more else None
    generator = torch.Generator().manual_seed(given.seed)
    if accelerator.process_index:
        torch.manual_seed(given.seed + 1000 * accelerator.process_index)  # rows elsewhere have a dropout of their own
    at = (checkpoint.resume() if checkpoint else None) or START | {"best": (-1.0, None)}
    best, loss = at["best"], torch.zeros(())

    def order(balanced: bool, generator: torch.Generator) -> tuple[Tensor, ...]:
        if balanced:  # each class as often as any other that Train holds
            weight = 1 / target.bincount()[target].double()
            return torch.multinomial(weight, len(train), True, generator=generator).split(config.batch_size)
        return torch.randperm(len(train), generator=generator).split(config.batch_size)

    still = kind == "finetune" and not unlabelled and first == epochs  # nothing in a step changes but its tensors

    def step(target: Tensor, weight: Tensor, **batch: Tensor) -> Tensor:
        with accelerator.autocast():
            found = logits(model, batch).float()
            if config.imbalance == "logit_adjusted":
                found = found + prior
            loss = cross_entropy(found, target)
            if unlabelled:
                more = torch.randint(len(unlabelled["input_ids"]), (config.batch_size,))
                loss = loss + config.uda_weight * uda(model, take(unlabelled, more, device), tokenizer)
        accelerator.backward(loss * weight)
        return loss

    with fast(model, study.runtime.fast, study.runtime.compile) as packing:
        capturable = still and can_capture(study.runtime, accelerator)
        replay = Replay(step, model.parameters(), packing, device, capturable)
        for epoch in range(at["epoch"], epochs):
            model.train()
            if epoch >= first:
                resumed = epoch == at["epoch"] and at["order"] is not None
                only_last_layer(model, optimizer, given.seed if epoch == first and not resumed else None)
            shuffled = partial(order, config.imbalance == "class_balanced" or epoch >= first)
            for position, index in batches_left(at, epoch, generator, shuffled):
                own = local_rows(index, accelerator)
                rows = own if len(own) else index[:1]  # a process without a row goes along, at weight 0
                batch = batch_of(tokens, shown, rows, "cpu", replay.pad_to_multiple_of)
                loss = replay(target=target[rows], weight=torch.tensor(len(own) / len(index)), **batch)
                sum_gradients(model.parameters(), accelerator)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if checkpoint and checkpoint.due():
                    checkpoint.save(**position, best=best)
            if config.selection == "best_dev" and len(dev):
                accuracy = _accuracy(read(dev), dev, labels)
                if accuracy > best[0]:  # the earliest of equals
                    best = (accuracy, {k: v.detach().cpu().clone() for k, v in model.state_dict().items()})
    if not torch.isfinite(loss):
        raise FloatingPointError(f"fine-tuning diverged: the loss is {loss.item()}; lower finetune.lr")
    if best[1] is not None:
        model.load_state_dict(best[1])


def only_last_layer(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int | None) -> None:
    """Train ``model.classifier`` alone from here on (decoupled training: Kang et al., 2020, their cRT).

    Args: seed: of fresh weights, the same in all processes, which the optimiser remembers nothing of; None: go on.
    """
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    if seed is None:
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.classifier.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    for parameter in model.classifier.parameters():
        optimizer.state.pop(parameter, None)


def uda(model: nn.Module, tokens: dict[str, Tensor], tokenizer, share: float = 0.3) -> Tensor:
    """Unsupervised data augmentation (Xie et al., 2020): a title and the same with words replaced are of one class.

    The mean divergence KL(p || q), in nats, of the noisy title's classes q from the clean title's p, which is sharpened
    (temperature 0.4), takes no gradient, and counts where its surest class has at least 0.5 (their settings where
    classes are many). A word is replaced, with probability ``share``, by one drawn from the batch's words.

    Args: model: a classifier of tokens. tokens: input_ids and attention_mask, (N, T) each. Returns: scalar.
    """
    ids, words = tokens["input_ids"], tokens["attention_mask"].bool()
    words = words & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    with torch.no_grad():
        clean = logits(model, tokens).float()
        sure = clean.softmax(-1).amax(-1) >= 0.5
        target = (clean / 0.4).log_softmax(-1)  # (N, C)
    pool = ids[words]
    if not len(pool):
        return clean.sum() * 0
    drawn = pool[torch.randint(len(pool), ids.shape, device=ids.device)]
    noisy = torch.where(words & (torch.rand(ids.shape, device=ids.device) < share), drawn, ids)
    found = logits(model, tokens | {"input_ids": noisy}).float().log_softmax(-1)
    return (kl_div(found, target, reduction="none", log_target=True).sum(-1) * sure).mean()


def adapted_backbone(towers: Path) -> dict[str, Tensor]:
    """The weights of the vision backbone in a file of adapted towers.

    Raises: ModelError: no such file, or towers that see no pictures.
    """
    from safetensors.torch import load_file

    if not towers.is_file():
        raise ModelError(f"{towers}: no such file: no towers were kept beside this encoder; run notebook 02 again")
    prefix = "vision.backbone."
    found = {name.removeprefix(prefix): w for name, w in load_file(towers).items() if name.startswith(prefix)}
    if not found:
        raise ModelError(f"{towers}: holds no vision tower; a classifier that looks needs a method with pictures")
    return found


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(N, C), of a transformers classifier or of the variants here."""
    output = model(**batch)
    return output if isinstance(output, Tensor) else output.logits


def batch_of(
    tokens: dict[str, Tensor] | None,
    pictures: Pictures | None,
    index: Tensor,
    device: torch.device | str,
    pad_to_multiple_of: int = 1,
) -> dict[str, Tensor]:
    """What a classifier is called with for the products at ``index`` (N,): tokens, as of `take`, pictures, or both."""
    return (take(tokens, index, device, pad_to_multiple_of) if tokens else {}) | (pictures[index] if pictures else {})


@torch.inference_mode()
def predict(
    model: nn.Module, tokenizer, titles: list[str], study: Study, accelerator, pictures: Pictures | None = None
) -> np.ndarray:
    """Class probabilities of titles in their order: float64 (N, C). Long and short titles go in batches of their
    own, so that little is padded. Without a tokenizer pictures alone are read."""
    model.eval()
    tokens, order = None, torch.arange(len(titles))
    if tokenizer is not None:
        tokens = tokenize(tokenizer, titles, study.text.max_tokens)
        order = tokens["attention_mask"].sum(dim=1).argsort(stable=True)
    narrow = study.runtime.fast and pictures is None and accelerator.mixed_precision == "bf16"
    with narrowed(model) if narrow else accelerator.autocast():
        rows = [
            logits(model, batch_of(tokens, pictures, i, accelerator.device)).float().softmax(-1).cpu()
            for i in order.split(128)
        ]
    probability = torch.cat(rows)
    return probability[order.argsort()].double().numpy()


def _accuracy(probability: np.ndarray, products: pd.DataFrame, labels: list[str]) -> float:
    return float(np.mean(np.array(labels)[probability.argmax(1)] == products.label.to_numpy()))


def _knn(encoder: str, train: pd.DataFrame, catalogue: Catalogue, study: Study) -> Read:
    """The nearest titles of ``train`` by cosine, in the encoder as it is: nothing is trained.

    Titles are pooled as ``text.pooling`` says, before any projection.
    """
    backbone, tokenizer = load_text(encoder)
    backbone.to(make_accelerator(study.runtime).device)

    def embed(products: pd.DataFrame) -> Tensor:
        with fast(backbone, study.runtime.fast):
            return embed_titles(backbone, tokenizer, list(products.title), study.text)

    known, label = embed(train), torch.tensor(pd.Index(catalogue.labels).get_indexer(train.label))
    k, classes = study.finetune.neighbours, len(catalogue.labels)
    return lambda products: vote(embed(products), known, label, classes, k).numpy()


def vote(query: Tensor, known: Tensor, label: Tensor, classes: int, k: int) -> Tensor:
    """Each class's share in the votes of the k nearest by cosine, each vote weighed by its cosine.

    Args:
        query: (N, D).
        known: (M, D); where M < k all of them vote.
        label: int64 (M,), below ``classes``.

    Returns: float64 (N, classes), rows sum to 1. A cosine below 1e-6 counts as 1e-6.
    """
    query, known, rows = normalize(query, dim=1), normalize(known, dim=1), []
    for part in query.split(1024):  # (1024, M) cosines at a time
        near = (part @ known.T).topk(min(k, len(known)), dim=1)
        weight = near.values.double().clamp(min=1e-6)
        rows.append(weight.new_zeros(len(part), classes).scatter_add(1, label[near.indices], weight))
    votes = torch.cat(rows)
    return votes / votes.sum(dim=1, keepdim=True)


def _looking(fit: Callable[..., Read], train: pd.DataFrame, path: Path | None) -> Callable[..., np.ndarray]:
    """A classifier of pictures, trained on the products that have one. Read: products, and the probabilities (N, C)
    of those that it has nothing to say of, for want of a picture here or in all of ``train``."""
    shown = train[train.image_row >= 0].reset_index(drop=True)
    look = fit("image", shown, path) if len(shown) else None

    def read(products: pd.DataFrame, otherwise: np.ndarray) -> np.ndarray:
        seen = (products.image_row >= 0).to_numpy()
        if look is None or not seen.any():
            return otherwise
        probability = otherwise.copy()
        probability[seen] = look(products[seen].reset_index(drop=True))
        return probability

    return read


def _image(fit: Callable[..., Read], train: pd.DataFrame, catalogue: Catalogue, path: Path | None) -> Read:
    """Pictures alone. A product without one gets the classes' shares in ``train``, so the most frequent class."""
    look, trained = _looking(fit, train, path), (train.image_row >= 0).any()
    share = train.label.value_counts(normalize=True).reindex(catalogue.labels, fill_value=0.0)

    def read(products: pd.DataFrame) -> np.ndarray:
        absent = int((products.image_row < 0).sum()) if trained else len(products)
        if absent:
            whose, why = products["part"].iloc[0], "for want of a picture"
            told = f"{absent} of {len(products)} products of {whose} are called '{share.idxmax()}' {why}"
            warnings.warn(f"{catalogue.name}: {told}", stacklevel=2)
        return look(products, np.tile(share, (len(products), 1)))

    return read


def _late(fit: Callable[..., Read], train: pd.DataFrame, catalogue: Catalogue, path: Path | None) -> Read:
    """Late fusion: the probabilities of a title's and of its picture's classifier, averaged with a weight chosen on
    Dev. Without a picture the title decides alone."""
    say = fit("finetune", train, path)
    look = _looking(fit, train, path.with_stem(f"{path.stem}-image") if path else None)
    dev = catalogue.part("dev")
    weight = picture_weight(title := say(dev), look(dev, title), catalogue.labels, dev)
    return lambda products: (1 - weight) * (title := say(products)) + weight * look(products, title)


def _distilled(
    fit: Callable[..., Read],
    teacher: str,
    train: pd.DataFrame,
    catalogue: Catalogue,
    path: Path | None,
    keep: Path | None,
) -> Read:
    """Distillation (Hinton et al., 2015) over the SSL part: a teacher, which may look at pictures, learns from the few
    labels, and its probabilities of the SSL part's products are the targets of a classifier that reads titles alone,
    beside the labels themselves. So at inference it is BERT as ever."""
    beside = path.with_stem(f"{path.stem}-teacher") if path else None

    def soft() -> np.ndarray:
        teach = _late(fit, train, catalogue, beside) if teacher == "late" else fit(teacher, train, beside)
        return teach(catalogue.part("ssl")).astype(np.float32)

    return fit("finetune", train, path, keep=keep, soft=soft)


def picture_weight(title: np.ndarray, picture: np.ndarray, labels: list[str], dev: pd.DataFrame) -> float:
    """The weight of pictures among 0, 0.1, ..., 1 with the highest accuracy on ``dev``, the smallest of equals.

    Args: title, picture: probabilities (N, C) of the products of ``dev``.
    """
    return max(np.arange(11) / 10, key=lambda w: _accuracy((1 - w) * title + w * picture, dev, labels))


def _words_of(words: Lexical) -> Read:
    """TF-IDF's reading of products."""
    return lambda products: words(list(products.title))


def _together(read: Read, words: Read) -> Read:
    """A reading by an encoder and by TF-IDF, as one."""
    return lambda products: geometric_mean(read(products), words(products))


def _as_table(items: pd.DataFrame, labels: list[str], probability: np.ndarray) -> pd.DataFrame:
    predicted = np.array(labels, dtype=object)[probability.argmax(axis=1)]
    return pd.DataFrame(
        {
            "id": items.id.to_numpy(),
            "label": items.label.to_numpy(),
            "predicted": predicted,
            "confidence": probability.max(axis=1).round(6),
        }
    )
