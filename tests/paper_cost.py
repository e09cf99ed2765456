"""What an answer costs with the paper's encoders: BERT-base, and a ViT beside it, with random weights.

python tests/paper_cost.py [--vit vit_large_patch16_224] [--device cuda] [--out figures/scale/deploy.csv]

Notebook 06 measures the classifiers of a study; costs do not depend on what a weight is, so these need no training.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bench_work import CLASSES, TOKENS, text_folder, titles
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from icssl_lib import deploy
from icssl_lib.config import VisionConfig
from icssl_lib.encoders import save_pretrained
from icssl_lib.images import written_whole
from icssl_lib.runs import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="bert-base")
    parser.add_argument("--vit", default="vit_large_patch16_224", help="timm's name")
    parser.add_argument("--size", type=int, default=224, help="of the pictures that the ViT sees")
    parser.add_argument("--side", type=int, default=500, help="of the JPEGs that arrive")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="at most, for a batch on a device")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    jpegs = [deploy.as_jpeg(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), options.side) for _ in range(64)]
    requests = deploy.Requests(list(titles().title[:64]), jpegs)
    with tempfile.TemporaryDirectory() as home:
        source, folder = text_folder(options.shape), Path(home) / "classifier"
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=CLASSES, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.model_max_length = TOKENS
        save_pretrained(model, tokenizer, folder)
        fp32 = deploy.export_onnx(folder, Path(home) / "fp32")
        int8 = deploy.quantize_int8(fp32, Path(home) / "int8")
        vision = VisionConfig(model=options.vit, image_size=options.size, random=True)
        models = deploy.Models(folder, fp32, int8, vision)
        devices = ["cpu"] if options.device == "cpu" else ["cpu", "cuda"]
        table = deploy.measure(
            models, requests, devices=devices, repeats=options.repeats, seconds=options.seconds,
            threads=options.threads, memory=False,
        )  # fmt: skip
    about = machine()
    names = table["device"].map({"cpu": f"{about['cpu']} ({about['instructions']})", "cuda": about["device"]})
    table = table.assign(text=options.shape, vision=options.vit, machine=names).round(4)
    print(table.to_string(index=False))
    if options.out is not None:
        if options.out.is_file():  # other machines' rows stay
            before = pd.read_csv(options.out)
            table = pd.concat([before, table]).drop_duplicates(["what", "batch", "vision", "machine"], keep="last")
        with written_whole(options.out) as part:
            table.to_csv(part, index=False)


if __name__ == "__main__":
    main()
