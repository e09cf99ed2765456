"""What the tiny encoders know of each world of the embedded catalogue before anything is adapted. Dev only; Test is
not read. Appends rows to figures/bench/worlds.csv.

python benchmarks/worlds.py after      (20 minutes on one core; the rows "before" are of commit bec7eac)

Probes are logistic regressions (C = 10) on frozen features: pictures by the tiny ViT and by an untrained one of
timm's size, titles by the tiny text encoder's mean-pooled embeddings of unit norm; beside them the words' TF-IDF and the
share of the most frequent class. Accuracies with 5% of Train are means over five subsets. Pretraining is timed in
core-seconds.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter, process_time

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from icssl_lib.catalogue import load, split, train_subset
from icssl_lib.config import Study, SyntheticSource, load_config
from icssl_lib.encoders import VisionTower, embed_titles, load_text, load_vision
from icssl_lib.lexical import Lexical
from icssl_lib.sources.synthetic.pretrain import VISION_MODEL, pretrain_text, pretrain_vision

OUT = Path("figures/bench/worlds.csv")
FRACTIONS = {0.05: 5, 1.0: 1}  # of Train: subsets drawn of it


def probe(train: pd.DataFrame, dev: pd.DataFrame, features: np.ndarray) -> float:
    """Accuracy on Dev of a logistic regression. features: (N, D), indexed by both frames' ``row``."""
    model = LogisticRegression(C=10, max_iter=3000).fit(features[train.row], train.label)
    return model.score(features[dev.row], dev.label)


def lexical(train: pd.DataFrame, dev: pd.DataFrame) -> float:
    labels = sorted(train.label.unique())
    guess = Lexical.fit(list(train.title), list(train.label), labels)(list(dev.title)).argmax(axis=1)
    return float(np.mean(np.array(labels)[guess] == dev.label))


@torch.inference_mode()
def picture_features(backbone: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    tower = VisionTower(backbone.eval(), projection_dim=1, depth=0)
    return torch.cat([tower.embed(part) for part in torch.from_numpy(pictures).split(256)]).numpy()


def measure(study: Study, source: SyntheticSource, encoders: Path) -> list[dict]:
    """Rows what, fraction, value of one catalogue."""
    start = perf_counter()
    raw = load("bench", source)
    rows = [{"what": "titles per second", "value": len(raw.table) / (perf_counter() - start)}]
    table = raw.table.assign(part=split(raw.table, study.split_seed))
    table = table[table.part.isin(["train", "dev"])].assign(row=lambda read: range(len(read)))
    start = perf_counter()
    pictures = np.stack([np.asarray(raw.read_image(image)) for image in table.image])
    rows += [{"what": "pictures per second", "value": len(table) / (perf_counter() - start)}]
    trained = study.vision.model_copy(update={"model": f"local-dir:{encoders / 'vision'}"})
    shape = {"model": VISION_MODEL, "random": True}
    torch.manual_seed(0)
    untrained = load_vision(study.vision.model_copy(update=shape))
    features = {"pictures": picture_features(load_vision(trained), pictures)}
    features["pictures, untrained"] = picture_features(untrained, pictures)
    embeddings = embed_titles(*load_text(str(encoders / "text")), list(table.title), study.text)
    features["titles"] = normalize(embeddings, dim=1).numpy()
    train, dev = (table[table.part == part].reset_index(drop=True) for part in ("train", "dev"))
    majority = train.label.mode()[0]
    rows += [{"what": "most frequent class", "value": float((dev.label == majority).mean())}]
    for fraction, draws in FRACTIONS.items():
        subsets = [train_subset(train, fraction, seed) for seed in range(draws)]
        scores = {"titles, TF-IDF": [lexical(subset, dev) for subset in subsets]}
        scores |= {what: [probe(subset, dev, x) for subset in subsets] for what, x in features.items()}
        rows += [{"what": what, "fraction": fraction, "value": np.mean(each)} for what, each in scores.items()]
    return rows


def main(state: str, worlds: list[int]) -> None:
    study, encoders = load_config(Path("config/quick.yaml")), Path(mkdtemp())
    rows = []
    for tower, pretrain in {"text": pretrain_text, "vision": pretrain_vision}.items():
        start = process_time()
        pretrain(study, encoders / tower, progress=False)
        rows.append({"what": f"pretraining {tower}, core-seconds", "value": process_time() - start})
    for world in worlds:
        for genre, source in study.datasets.items():
            if world:
                source = source.model_copy(update={"world": world, "products": 20_000, "classes": 40})
            keys = {"world": world, "genre": genre, "classes": source.classes, "products": source.products}
            rows += [keys | row for row in measure(study, source, encoders)]
    rows = pd.DataFrame([{"state": state} | row for row in rows]).round(4)
    kept = pd.read_csv(OUT) if OUT.exists() else rows[:0]
    kept = pd.concat([kept[kept.state != state], rows])
    kept.astype(dict.fromkeys(("world", "classes", "products"), "Int64")).to_csv(OUT, index=False)


if __name__ == "__main__":
    main(sys.argv[1], [int(world) for world in sys.argv[2:]] or [0, 1, 2])
