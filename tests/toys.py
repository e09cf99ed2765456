"""Models and a catalogue so small that a training step takes milliseconds, and the files that tests write most."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from icssl_lib.catalogue import Catalogue, split_hash
from icssl_lib.config import Study

COLOURS = {"mug": (200, 30, 30), "lamp": (30, 200, 30), "rug": (30, 30, 200), "vase": (200, 200, 30)}
BRANDS = ["alma", "bora", "cira", "dena", "eris", "fola", "gira", "hava"]
SIZE = 32  # side of the pictures, in pixels


def huge_png(side: int) -> bytes:
    """The beginning of a 1-bit PNG of side x side: its header, which is all that may be read of so large a picture."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 9999) + b"IDAT" + bytes(99)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flip(path: Path, at: int | None = None) -> None:
    """Another value of one bit of a file, in its middle or ``at`` a byte, in place, as a tired disk has it."""
    with path.open("r+b") as file:
        place = file.seek(path.stat().st_size // 2 if at is None else at)
        byte = file.read(1)[0] ^ 1
        file.seek(place)
        file.write(bytes([byte]))


def write_table(path: Path, rows: pd.DataFrame) -> Path:
    """A table of the kind that its name says."""
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    elif "jsonl" in path.name:
        rows.to_json(path, orient="records", lines=True)
    else:
        rows.to_csv(path, index=False, sep="\t" if "tsv" in path.name else ",")
    return path


def write_notebook(path: Path, *sources: str, tag: bool = True) -> Path:
    """A notebook of code cells; the first holds the parameters."""
    import nbformat

    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"] if tag else []
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def titles(lengths: list[int], seed: int = 0) -> dict[str, Any]:
    """Random tokens, (N, T) with T the longest, padded on the right."""
    import torch

    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 90, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids * mask, "attention_mask": mask}


def save_text(folder: Path, **options: Any) -> Path:
    """A BERT of one layer and width 32 with a WordPiece tokenizer of the toys' words, as a Hugging Face folder."""
    import torch
    from transformers import BertConfig, BertModel

    from icssl_lib.sources.synthetic.pretrain import train_tokenizer  # the same pieces in every process

    tokenizer = train_tokenizer([*COLOURS, *BRANDS, *(str(n) for n in range(100))] * 3, vocab_size=300)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    model = BertModel(BertConfig(**shape | options))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_vision(folder: Path, **options: Any) -> Path:
    """A ViT of one block and width 32 for 32 x 32 pictures, as timm's folder (`local-dir:`)."""
    import timm
    import torch
    from timm.models import save_for_hf

    shape = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": SIZE}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape | options)
    save_for_hf(model, folder, model_config={"num_classes": 0}, model_args=shape | options, safe_serialization=True)
    return folder


def catalogue(folder: Path, n: int = 120, pictures: bool = True) -> Catalogue:
    """``n`` products of four labels; half of the titles and each picture's colour tell the label."""
    rng = np.random.default_rng(0)
    label = rng.choice(list(COLOURS), n)
    word = np.where(rng.random(n) < 0.5, label, "")
    title = [f"{rng.choice(BRANDS)} {w} {i % 100}".replace("  ", " ") for i, w in enumerate(word)]
    parts = ["ssl"] * (n // 2) + ["train"] * (n // 4) + ["dev"] * (n // 8)
    products = pd.DataFrame({"id": [f"p{i:03d}" for i in range(n)], "title": title, "label": label})
    products["image_row"] = rng.permutation(n) if pictures else -1
    products["part"] = parts + ["test"] * (n - len(parts))
    store = None
    if pictures:
        pixels = np.zeros((n, SIZE, SIZE, 3), np.uint8)
        noise = rng.integers(0, 50, (n, SIZE, SIZE, 3))
        pixels[products.image_row] = np.array([COLOURS[name] for name in label])[:, None, None] + noise
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", pixels)
        store = np.load(folder / "images.npy", mmap_mode="r")
    return Catalogue("toy", products, store, pd.DataFrame(), split_hash(products), folder)


def study(text: Path, vision: Path, /, **sections: dict[str, Any]) -> Study:
    """A study of the toys, settings that learn within seconds; ``sections`` update its sections."""
    settings = {
        "study": "toy",
        "seeds": [0],
        "datasets": {"toy": {"source": "synthetic", "genre": "beauty"}},
        "text": {"model": str(text), "max_tokens": 8},
        "vision": {"model": f"local-dir:{vision}", "image_size": SIZE},
        "adapt": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "projection_dim": 16},
        "finetune": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "fractions": [0.2, 1.0], "keep_classifiers": []},
        "runtime": {"device": "cpu"},
    }
    return Study.model_validate(settings | {k: {**settings[k], **v} for k, v in sections.items()})


def tokenizer(text: Path | str) -> Any:
    """The tokenizer of a text folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(text)


def run_folder(out: Path, text: Path, vision: Path, title: str | None = None) -> Study:
    """A run folder of 120 toys: the encoder of ConVIRT; predictions by origin (all rugs) and ConVIRT (all right).

    title: of the first product. Returns: its study.
    """
    from icssl_lib import adapt
    from icssl_lib.catalogue import save
    from icssl_lib.config import Run
    from icssl_lib.runs import path_of
    from icssl_lib.sources.raw import Report

    settings = study(text, vision, adapt={"batch_size": 30}).model_copy(update={"methods": ["origin", "convirt"]})
    toy, run = catalogue(out / "catalogues" / "toy"), Run("toy", "convirt", 0)
    toy.products.loc[0, "title"] = title or toy.products["title"][0]
    save("toy", toy.products, Report().frame(), toy.folder)
    adapt.save(adapt.adapt(run, toy, settings, progress=False), path_of(out, "encoders", run))
    test = toy.part("test")[["id", "label"]]
    for method, guess in (("origin", "rug"), ("convirt", test["label"])):
        path = path_of(out, "predictions", Run("toy", method, 0)).with_suffix(".parquet")
        path.parent.mkdir(parents=True)
        parts = [test.assign(fraction=f, predicted=p) for f, p in ((0.2, "mug"), (1.0, guess))]
        pd.concat(parts).sample(frac=1, random_state=0).to_parquet(path)
    return settings
