"""The supervised stage: a classifier on a fraction of Train, all weights trained, and its reading of Test."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, get_scheduler

from icssl_lib.adapt import make_accelerator, text_model
from icssl_lib.catalogue import Catalogue, head_tail, train_subset
from icssl_lib.config import Study
from icssl_lib.encoders import mean_pool, save_pretrained, take, tokenize
from icssl_lib.images import written_whole
from icssl_lib.methods import METHODS
from icssl_lib.metrics import scores as metrics_of
from icssl_lib.runs import digest, piece
from icssl_lib.scale import START, Checkpoint, batches_left, in_processes, local_rows, sum_gradients


@dataclass
class Classified:
    """One classifier's reading. predictions: id, label, predicted, confidence of Test; n_train: labels used."""

    predictions: pd.DataFrame
    n_train: int
    dev_accuracy: float


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


def classify_fractions(
    method: str, catalogue: Catalogue, study: Study, seed: int, out: Path, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`classify_fractions_here` in as many processes as the study asks for."""
    return in_processes(study.runtime, classify_fractions_here, method, catalogue, study, seed, out, progress)


def classify_fractions_here(
    method: str, catalogue: Catalogue, study: Study, seed: int, out: Path, progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The method's classifiers on every fraction of Train, from the encoder that the run folder holds.

    A fraction that is finished is not trained again when the stage was killed in a later one.

    Returns:
        scores: one row per fraction: dataset, method, fraction, seed, n_train, the metrics on Test, dev_accuracy,
            seconds. predictions: one row per fraction and Test item: dataset, method, fraction, seed, id, label,
            predicted, confidence.
    """
    if METHODS[method].adapts:
        encoder = str(piece(out, "encoders", catalogue.name, method, seed))
    else:
        encoder = text_model(study, out)
    head, tail = head_tail(catalogue.label_counts)
    # Labels that Train does not hold are of the tail: no classifier can name them.
    tail = tail + sorted(set(catalogue.part("test").label) - set(catalogue.label_counts.index))
    scores, tables = [], []
    unfinished = piece(out, "checkpoints", catalogue.name, method, seed)
    weights = Path(encoder, "model.safetensors")
    made = weights.stat().st_mtime_ns if weights.is_file() else None  # an encoder made anew is another
    main = int(os.environ.get("RANK", 0)) == 0
    bar = f"{catalogue.name} {method} seed {seed}"
    for fraction in tqdm(study.finetune.fractions, desc=bar, disable=not (progress and main)):
        name = f"f{round(100 * fraction):03d}"
        parts = (method, seed, fraction, study.text, study.finetune, study.runtime.precision, encoder, made)
        key = digest(*parts, catalogue.split_hash)
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
        read = classify(method, encoder, catalogue, study, fraction, seed, keep, checkpoint, key)
        seconds = round(time.perf_counter() - started, 2)
        keys = {"dataset": catalogue.name, "method": method, "fraction": fraction, "seed": seed}
        metrics = metrics_of(read.predictions.label, read.predictions.predicted, head, tail)
        scores.append(
            keys | {"n_train": read.n_train, **metrics, "dev_accuracy": read.dev_accuracy, "seconds": seconds}
        )
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
    return pd.DataFrame(scores), pd.concat(tables, ignore_index=True)


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
) -> Classified:
    """Train the method's classifier on a nested fraction of Train, then read Test once.

    Args:
        method: a name in METHODS.
        encoder: folder or hub name of the text encoder to start from (unused by TF-IDF).
        catalogue: Train and Dev are trained and selected on.
        fraction: in (0, 1], of Train; the same seed draws the same products for every method.
        keep: folder to save the classifier to, as a plain Hugging Face folder.
        checkpoint: file for the state of a long training, which a killed call goes on from.
        key: of what the training depends on; a state with another key is ignored.
    """
    train = train_subset(catalogue.part("train"), fraction, seed)
    kind = METHODS[method].classifier
    if kind == "tfidf":
        return _tfidf(train, catalogue)
    return _finetune(encoder, train, catalogue, study, seed, keep, checkpoint, key)


def _finetune(
    encoder: str,
    train: pd.DataFrame,
    catalogue: Catalogue,
    study: Study,
    seed: int,
    keep: Path | None,
    path: Path | None,
    key: str,
) -> Classified:
    """Cross-entropy on all weights with Adam (Chen & Chou, 2022, section 4)."""
    config, labels = study.finetune, catalogue.labels
    set_seed(seed)
    accelerator = make_accelerator(study.runtime)
    device = accelerator.device
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    if config.head == "mean":
        model = MeanPooledClassifier(encoder, len(labels))
    else:
        names = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        model = AutoModelForSequenceClassification.from_pretrained(
            encoder, num_labels=len(labels), dtype=torch.float32, **names
        )
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    epochs, steps = config.steps(len(train))
    schedule = get_scheduler(config.schedule, optimizer, round(config.warmup * steps), steps)
    optimizer = accelerator.prepare(optimizer)
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = Checkpoint(path, study.runtime.checkpoint_minutes, key, accelerator, **state) if path else None

    tokens = tokenize(tokenizer, list(train.title), study.text.max_tokens)
    target = torch.tensor(pd.Index(labels).get_indexer(train.label))
    generator = torch.Generator().manual_seed(seed)
    if accelerator.process_index:
        torch.manual_seed(seed + 1000 * accelerator.process_index)  # rows elsewhere have a dropout of their own
    at = (checkpoint.resume() if checkpoint else None) or START | {"best": (-1.0, None)}
    best, loss = at["best"], torch.zeros(())

    def shuffled(generator: torch.Generator) -> tuple[Tensor, ...]:
        return torch.randperm(len(train), generator=generator).split(config.batch_size)

    for epoch in range(at["epoch"], epochs):
        model.train()
        for position, index in batches_left(at, epoch, generator, shuffled):
            own = local_rows(index, accelerator)
            rows = own if len(own) else index[:1]  # a process without a row goes along, at weight 0
            with accelerator.autocast():
                loss = cross_entropy(logits(model, take(tokens, rows, device)).float(), target[rows].to(device))
            accelerator.backward(loss * (len(own) / len(index)))
            sum_gradients(model.parameters(), accelerator)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if checkpoint and checkpoint.due():
                checkpoint.save(**position, best=best)
        if config.selection == "best_dev":
            accuracy = _dev_accuracy(model, tokenizer, catalogue, study, accelerator)
            if accuracy > best[0]:  # the earliest of equals
                best = (accuracy, {k: v.detach().cpu().clone() for k, v in model.state_dict().items()})
    if not torch.isfinite(loss):
        raise FloatingPointError(f"fine-tuning diverged: the loss is {loss.item()}; lower finetune.lr")
    if best[1] is not None:
        model.load_state_dict(best[1])
    dev_accuracy = _dev_accuracy(model, tokenizer, catalogue, study, accelerator)
    test = catalogue.part("test")
    probability = predict(model, tokenizer, list(test.title), study, accelerator)
    if keep is not None:
        tokenizer.model_max_length = study.text.max_tokens
        if accelerator.is_main_process:
            save_pretrained(model.cpu(), tokenizer, keep)
    return Classified(_as_table(test, labels, probability), len(train), dev_accuracy)


def logits(model: nn.Module, tokens: dict[str, Tensor]) -> Tensor:
    """(N, C), of a transformers classifier or of the mean-pooled variant."""
    output = model(**tokens)
    return output if isinstance(output, Tensor) else output.logits


@torch.inference_mode()
def predict(
    model: nn.Module, tokenizer, titles: list[str], study: Study, accelerator, batch_size: int = 128
) -> np.ndarray:
    """Class probabilities of titles in their order: float64 (N, C). Long and short titles go in batches of their
    own, so that little is padded."""
    model.eval()
    tokens = tokenize(tokenizer, titles, study.text.max_tokens)
    order = tokens["attention_mask"].sum(dim=1).argsort(stable=True)
    with accelerator.autocast():
        rows = [
            logits(model, take(tokens, i, accelerator.device)).float().softmax(-1).cpu()
            for i in order.split(batch_size)
        ]
    probability = torch.cat(rows)
    return probability[order.argsort()].double().numpy()


def _dev_accuracy(model: nn.Module, tokenizer, catalogue: Catalogue, study: Study, accelerator) -> float:
    dev = catalogue.part("dev")
    probability = predict(model, tokenizer, list(dev.title), study, accelerator)
    return float(np.mean(np.array(catalogue.labels)[probability.argmax(1)] == dev.label.to_numpy()))


def _tfidf(train: pd.DataFrame, catalogue: Catalogue) -> Classified:
    """TF-IDF of words and logistic regression: the baseline that a practitioner tries first."""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    one_class = train.label.nunique() == 1
    head = DummyClassifier() if one_class else LogisticRegression(C=10, max_iter=2000)
    model = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), head).fit(train.title, train.label)
    dev, test = catalogue.part("dev"), catalogue.part("test")
    dev_accuracy = float(np.mean(model.predict(dev.title) == dev.label))
    return Classified(_as_table(test, list(model.classes_), model.predict_proba(test.title)), len(train), dev_accuracy)


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
