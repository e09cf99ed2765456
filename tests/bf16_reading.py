"""Does a classifier decide otherwise when it is read in bf16 throughout (`icssl_lib.fast.narrowed`)?

    .venv/bin/python tests/bf16_reading.py runs/hm runs/quick [--out figures/bench/bf16_reading.csv]

Every classifier that the runs have kept reads Dev three times: in float32, by autocast to bf16, and narrowed. Per data
set: classifiers, titles, float32's accuracy, and of the other two the mean difference from it, the largest of one
classifier, and the share of titles that are given another class.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from icssl_lib.catalogue import open_catalogue
from icssl_lib.encoders import take, tokenize
from icssl_lib.fast import fast, narrowed
from icssl_lib.images import written_whole

READINGS = {
    "float32": lambda model: torch.autocast("cpu", enabled=False),
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
    "narrowed": narrowed,
}


@torch.inference_mode()
def decided(folder: Path, titles: list[str]) -> dict[str, np.ndarray]:
    """Reading to the class of each title, by name."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, found = tokenize(tokenizer, titles, tokenizer.model_max_length), {}
    order = tokens["attention_mask"].sum(dim=1).argsort(stable=True)
    for name, reading in READINGS.items():
        with fast(model), reading(model):
            chosen = torch.cat([model(**take(tokens, i, "cpu")).logits.float().argmax(-1) for i in order.split(128)])
        found[name] = np.array([model.config.id2label[int(c)] for c in chosen[order.argsort()]])
    return found


def table(folder: Path) -> pd.DataFrame:
    """One row per data set of a run.

    Raises: SystemExit: it has kept no classifier.
    """
    rows = []
    for dataset in sorted((folder / "classifiers").glob("*")):
        dev = open_catalogue(folder / "catalogues" / dataset.name).part("dev")
        label, accuracy, changed = dev.label.to_numpy(), [], []
        for kept in sorted(path.parent for path in dataset.glob("*/seed*/f*/config.json")):
            found = decided(kept, list(dev.title))
            accuracy.append([(found[name] == label).mean() for name in READINGS])
            changed.append([(found[name] != found["float32"]).mean() for name in READINGS])
        if not accuracy:
            continue
        accuracy, changed = np.array(accuracy), np.array(changed).mean(axis=0)
        less = accuracy[:, 1:] - accuracy[:, :1]
        row = {"dataset": dataset.name, "classifiers": len(accuracy), "titles": len(dev)}
        row |= {"accuracy": accuracy[:, 0].mean()}
        for i, name in enumerate(list(READINGS)[1:]):
            row |= {f"{name}_less": less[:, i].mean(), f"{name}_largest": np.abs(less[:, i]).max()}
            row |= {f"{name}_changed": changed[i + 1]}
        rows.append(row)
    if not rows:
        raise SystemExit(f"{folder}: no classifier was kept; see finetune.keep_classifiers")
    return pd.DataFrame(rows).round(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="of finished runs, runs/quick")
    parser.add_argument("--out", type=Path, help="a CSV for the documentation")
    options = parser.parse_args()
    found = pd.concat([table(folder) for folder in options.folders], ignore_index=True)
    print(found.to_string(index=False))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(options.out) as part:
            found.to_csv(part, index=False)


if __name__ == "__main__":
    main()
