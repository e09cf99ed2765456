"""What the tiny encoders know of each world of the embedded catalogue before anything is adapted; Dev alone is read.

python benchmarks/worlds.py after    (half an hour on one core; replaces rows of figures/bench/worlds.csv)

Probes are logistic regressions (C = 10) on frozen features: of pictures by the tiny ViT and by an untrained one of its
shape, of titles by the text encoder's mean-pooled embeddings of unit norm, as they are and with unit variance in each
dimension; beside them words' TF-IDF. With 5% of Train: means over five subsets. Rows "before" are of commit bec7eac.
"""

import sys
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import timm
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import scale
from torch.nn.functional import normalize

from icssl_lib.catalogue import load, split, train_subset
from icssl_lib.config import Study, SyntheticSource, load_config
from icssl_lib.encoders import VisionTower, embed_titles, load_text, load_vision
from icssl_lib.lexical import WORD
from icssl_lib.sources.synthetic.pretrain import VISION_MODEL, pretrain_text, pretrain_vision, vision_shape

OUT, KEYS = Path("figures/bench/worlds.csv"), ["state", "world", "genre", "what", "fraction"]
SUBSETS = {0.05: 5, 1.0: 1}  # of Train: a fraction, and how many are drawn


def probe(train: pd.DataFrame, dev: pd.DataFrame, features: np.ndarray | None) -> float:
    """Accuracy on Dev. features: (N, D), indexed by both frames' ``row``; None: the titles' words."""
    if features is None:
        words = make_pipeline(TfidfVectorizer(token_pattern=WORD), LogisticRegression(C=10, max_iter=2000))
        return words.fit(train.title, train.label).score(dev.title, dev.label)
    model = LogisticRegression(C=10, max_iter=3000).fit(features[train.row], train.label)
    return model.score(features[dev.row], dev.label)


@torch.inference_mode()
def picture_features(backbone: torch.nn.Module, pictures: np.ndarray) -> np.ndarray:
    tower = VisionTower(backbone.eval(), projection_dim=1, depth=0)
    return torch.cat([tower.embed(part) for part in torch.from_numpy(pictures).split(256)]).numpy()


def measure(study: Study, source: SyntheticSource, encoders: Path) -> list[tuple]:
    """What, fraction and value, of one catalogue."""
    start = process_time()
    raw = load("bench", source)
    rows = [("titles per second", None, len(raw.table) / (process_time() - start))]
    table = raw.table.assign(part=split(raw.table, study.split_seed)).query("part in ('train', 'dev')")
    table, start = table.assign(row=range(len(table))), process_time()
    pictures = np.stack([np.asarray(raw.read_image(image)) for image in table.image])
    rows.append(("pictures per second", None, len(table) / (process_time() - start)))
    trained = load_vision(study.vision.model_copy(update={"model": f"local-dir:{encoders / 'vision'}"}))
    torch.manual_seed(0)
    untrained = timm.create_model(VISION_MODEL, num_classes=0, **vision_shape(study.pretrain, study.vision.image_size))
    features = {"titles, TF-IDF": None, "pictures": picture_features(trained, pictures)}
    features["pictures, untrained"] = picture_features(untrained, pictures)
    embeddings = embed_titles(*load_text(str(encoders / "text")), list(table.title), study.text)
    features["titles"] = normalize(embeddings, dim=1).numpy()
    features["titles, standardised"] = scale(features["titles"])
    train, dev = (table[table.part == part].reset_index(drop=True) for part in ("train", "dev"))
    rows.append(("most frequent class", None, (dev.label == train.label.mode()[0]).mean()))
    for fraction, draws in SUBSETS.items():
        subsets = [train_subset(train, fraction, seed) for seed in range(draws)]
        rows += [(what, fraction, np.mean([probe(s, dev, x) for s in subsets])) for what, x in features.items()]
    return rows


def main(state: str, worlds: list[int]) -> None:
    study, encoders, rows = load_config(Path("config/quick.yaml")), Path("runs/worlds") / state, []
    for tower, pretrain in {"text": pretrain_text, "vision": pretrain_vision}.items():
        if not (encoders / tower).exists():
            start = process_time()
            pretrain(study, encoders / tower, progress=False)
            rows.append((state, None, None, f"pretraining {tower}, core-seconds", None, process_time() - start))
    for world in worlds:
        other = {"world": world, "products": 20_000, "classes": 40} if world else {}
        for genre, source in study.datasets.items():
            source = source.model_copy(update=other)
            rows += [(state, world, genre, *row) for row in measure(study, source, encoders)]
    rows = pd.concat([pd.read_csv(OUT), pd.DataFrame(rows, columns=[*KEYS, "value"]).round(4)])
    rows.drop_duplicates(KEYS, keep="last").astype({"world": "Int64"}).to_csv(OUT, index=False)


if __name__ == "__main__":
    main(sys.argv[1], [int(world) for world in sys.argv[2:]] or [0, 1, 2])
