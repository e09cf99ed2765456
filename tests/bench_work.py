"""What `make bench` times: each function does a piece of work once, ours or a peer's, and returns its seconds.

Run as a program it is a worker: a line of JSON in, {"call": NAME, ...arguments}, a line of JSON out. Peers are run as
their own documentation runs them, on the same model, titles, pictures and batch size. All models have random weights:
speed does not depend on what a weight is.

A training is timed by torch's hook behind every optimiser's step, the same for all: seconds from step to step.
"""

import contextlib
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from icssl_lib import adapt, finetune
from icssl_lib.catalogue import Catalogue, split_hash
from icssl_lib.config import Study, SyntheticSource, TableSource
from icssl_lib.encoders import TextTower, VisionTower, embed_titles, load_vision, mean_pool, projection
from icssl_lib.fast import fast
from icssl_lib.images import ImageStore, all_cores
from icssl_lib.sources import synthetic

HOME = Path(os.environ.get("ICSSL_BENCH", "runs/bench")).resolve()
SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
}
SHAPES |= {
    "minilm, 250,000 words": SHAPES["minilm"] | {"vocab_size": 250_002},
    "tiny, many words": SHAPES["tiny"] | {"vocab_size": 60_000},
}
DEVICE = os.environ.get("ICSSL_DEVICE", "cpu")
VISION = {"ViT-Ti": "vit_tiny_patch16_224", "ViT-B": "vit_base_patch16_224", "ViT-L": "vit_large_patch16_224"}
THREADS = int(os.environ.get("OMP_NUM_THREADS", all_cores()))
TITLES, CLASSES, TOKENS = 5000 if DEVICE == "cpu" else 20000, 100, 32
WARM = 2 if DEVICE == "cpu" else 8  # the first steps fill caches, and on a GPU some compile


# --- models and data ---


@functools.cache
def titles() -> pd.DataFrame:
    """The embedded catalogue's beauty genre: title, label."""
    source = SyntheticSource(source="synthetic", genre="beauty", products=TITLES, classes=CLASSES)
    return synthetic.load("beauty", source).table[["title", "label"]].sample(frac=1, random_state=0, ignore_index=True)


def text_folder(shape: str) -> Path:
    """A BERT of this shape with random weights, as a Hugging Face folder."""
    folder = HOME / "models" / shape
    if not (folder / "config.json").is_file():
        from transformers import BertConfig, BertModel

        from icssl_lib.encoders import save_pretrained
        from icssl_lib.pretrain import train_tokenizer

        torch.manual_seed(0)
        tokenizer = train_tokenizer(list(titles().title), 30522)
        tokenizer.model_max_length = TOKENS
        save_pretrained(BertModel(BertConfig(**{"vocab_size": 30522} | SHAPES[shape])), tokenizer, folder)
    return folder


def vision_folder(size: int, vit: str) -> Path:
    """timm's ViT with patches of 16 for pictures of ``size`` pixels, random weights, as its folder."""
    folder = HOME / "models" / f"{vit}{size}"
    if not (folder / "config.json").is_file():
        import timm
        from timm.models import save_for_hf

        torch.manual_seed(0)
        model = timm.create_model(VISION[vit], num_classes=0, img_size=size)
        arguments = {"img_size": size}
        save_for_hf(model, folder, model_config={"num_classes": 0}, model_args=arguments, safe_serialization=True)
    return folder


def pictures(n: int, size: int) -> ImageStore:
    path = HOME / f"pictures{size}.npy"
    if not path.is_file():
        HOME.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))
    return ImageStore(path)


def catalogue(n: int, part: str, images: ImageStore | None = None) -> Catalogue:
    """``n`` products in one part, two in Dev and two in Test, which so cost nothing."""
    products = titles().head(n + 4).copy()
    products["id"] = products.index.astype(str)
    products["image_row"] = products.index % len(images) if images else -1
    products["part"] = [part] * n + ["dev"] * 2 + ["test"] * 2
    if part != "train":
        products.loc[0, "part"] = "train"
    return Catalogue("bench", products, images, pd.DataFrame(), split_hash(products), HOME)


def study(
    shape: str,
    size: int = 224,
    vit: str = "ViT-Ti",
    fast: bool = True,
    compile: bool = False,
    cuda_graphs: bool = True,
    frozen: bool = False,
    **sections: Any,
) -> Study:
    runtime = {"device": DEVICE, "precision": "auto", "fast": fast, "compile": compile, "cuda_graphs": cuda_graphs}
    return Study.model_validate(
        {
            "study": "bench",
            "datasets": {"bench": {"source": "synthetic", "genre": "beauty"}},
            "text": {"model": str(text_folder(shape)), "max_tokens": TOKENS},
            "vision": {"model": f"local-dir:{vision_folder(size, vit)}", "image_size": size, "frozen": frozen},
            "runtime": runtime | {"threads": THREADS},
            **sections,
        }
    )


@contextlib.contextmanager
def steps() -> Iterator[list[float]]:
    """Seconds of each optimiser's step in the block but the first few; on a GPU by its own clock, without a wait."""
    at: list[Any] = []

    def now(*_: Any) -> None:
        if DEVICE == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            at.append(event)
        else:
            at.append(time.perf_counter())

    handle = register_optimizer_step_post_hook(now)
    seconds: list[float] = []
    try:
        yield seconds
    finally:
        handle.remove()
        counted = at[WARM - 1 :]
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            seconds += [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(counted)]
        else:
            seconds += np.diff(counted).tolist()


def whole(work: Callable[[], Any]) -> list[float]:
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return [time.perf_counter() - started]


# --- ours ---


def ours_adapt(
    method: str,
    shape: str,
    batch: int,
    n_steps: int,
    size: int = 224,
    vit: str = "ViT-Ti",
    whole_table: bool = False,
    **options: Any,
) -> list[float]:
    n = batch * (n_steps + WARM) + 1  # of which one goes to Train
    images = pictures(512, size) if method == "convirt" else None
    settings = study(shape, size, vit, adapt={"epochs": 1, "batch_size": batch}, **options)
    whole = mock.patch.object(adapt, "decay_is_lost", return_value=False) if whole_table else contextlib.nullcontext()
    with whole, tempfile.TemporaryDirectory() as out, steps() as seconds:
        adapt.adapt(method, catalogue(n, "ssl", images), settings, 0, Path(out), progress=False)
    return seconds


def ours_finetune(shape: str, batch: int, n_steps: int, **options: Any) -> list[float]:
    sections = {"finetune": {"epochs": 1, "batch_size": batch, "keep_classifiers": []}, **options}
    with steps() as seconds:
        finetune.classify("origin", str(text_folder(shape)), catalogue(batch * (n_steps + WARM), "train"),
                          study(shape, **sections), 1.0, 0)  # fmt: skip
    return seconds


def ours_few_labels(shape: str, n: int, **options: Any) -> list[float]:
    """End to end as the paper fine-tunes: 30 epochs."""
    settings = study(shape, finetune={"keep_classifiers": []}, **options)
    return whole(lambda: finetune.classify("origin", str(text_folder(shape)), catalogue(n, "train"), settings, 1.0, 0))


def ours_predict(shape: str, n: int, narrow: bool = True, **options: Any) -> list[float]:
    settings = study(shape, **options)
    accelerator = adapt.make_accelerator(settings.runtime)
    model, tokenizer = classifier(shape)
    asked = list(titles().title[:n])
    by_autocast = mock.patch.object(finetune, "narrowed", side_effect=lambda _: accelerator.autocast())
    # As a classifier that was trained is read.
    with contextlib.nullcontext() if narrow else by_autocast, fast(model, settings.runtime.fast):
        finetune.predict(model, tokenizer, asked[:64], settings, accelerator)
        return whole(lambda: finetune.predict(model, tokenizer, asked, settings, accelerator))


def ours_embed(shape: str, n: int, **options: Any) -> list[float]:
    from icssl_lib.encoders import load_text

    settings = study(shape, **options)
    accelerator = adapt.make_accelerator(settings.runtime)
    backbone, tokenizer = load_text(str(text_folder(shape)))
    backbone.to(accelerator.device, torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32)
    asked = list(titles().title[:n])
    with fast(backbone):
        embed_titles(backbone, tokenizer, asked[:64], settings.text)
        return whole(lambda: embed_titles(backbone, tokenizer, asked, settings.text))


def ours_ingest(n: int, size: int) -> list[float]:
    """From a table and a folder of JPEGs to a store."""
    from icssl_lib.catalogue import ingest

    table = jpegs(n)
    with tempfile.TemporaryDirectory() as out:
        source = TableSource(source="table", table=table, image_folder=table.parent)
        return whole(lambda: ingest("bench", source, size, 0, Path(out), progress=False))


# --- peers: sentence-transformers, SimCSE, SetFit, transformers ---


@functools.cache
def classifier(shape: str) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = text_folder(shape)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES, dtype=torch.float32)
    return model.eval().to(DEVICE), AutoTokenizer.from_pretrained(folder)


def sentence_transformer(shape: str, projected: bool) -> Any:
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(text_folder(shape)), max_seq_length=TOKENS)
    width = transformer.get_word_embedding_dimension()
    modules = [transformer, models.Pooling(width)]
    if projected:  # the head that ours has
        modules += [models.Dense(width, width, activation_function=nn.ReLU())]
        modules += [models.Dense(width, 768, activation_function=nn.Identity())]
    return SentenceTransformer(modules=modules, device=DEVICE)


def trainer_options(batch: int, n_steps: int, precision: str, out: str) -> dict[str, Any]:
    return {
        "output_dir": out,
        "per_device_train_batch_size": batch,
        "max_steps": n_steps + WARM,
        "bf16": precision == "bf16",
        "use_cpu": DEVICE == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def sentence_transformers_simcse(shape: str, batch: int, n_steps: int, precision: str = "no") -> list[float]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses

    model, asked = sentence_transformer(shape, projected=True), list(titles().title)
    pairs = Dataset.from_dict({"anchor": asked, "positive": asked})
    with tempfile.TemporaryDirectory() as out:
        arguments = SentenceTransformerTrainingArguments(**trainer_options(batch, n_steps, precision, out))
        trainer = SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=pairs,
            loss=losses.MultipleNegativesRankingLoss(model, scale=10.0),
        )
        with steps() as seconds:
            trainer.train()
    return seconds


def original_simcse(shape: str, batch: int, n_steps: int) -> list[float]:
    """As Gao et al. (2021) train: every title padded to 32 tokens, both passes in one batch, gradients clipped."""
    from transformers import AutoModel, AutoTokenizer

    folder = text_folder(shape)
    tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    head = projection(backbone.config.hidden_size, 768)
    model = nn.ModuleList([backbone, head]).train().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)

    def collate(rows: list[str]) -> dict[str, torch.Tensor]:
        return tokenizer(rows * 2, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")

    with steps() as seconds:
        for _, tokens in zip(range(n_steps + WARM), DataLoader(list(titles().title), batch, True, collate_fn=collate)):  # noqa: B905
            tokens = tokens.to(DEVICE)
            hidden = backbone(**tokens).last_hidden_state
            first, second = nn.functional.normalize(head(mean_pool(hidden, tokens["attention_mask"])), dim=-1).chunk(2)
            nn.functional.cross_entropy(first @ second.T / 0.05, torch.arange(len(first), device=DEVICE)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return seconds


def hf_trainer(shape: str, batch: int, n_steps: int, precision: str = "no") -> list[float]:
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    folder = text_folder(shape)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES, dtype=torch.float32)
    rows = Dataset.from_dict({"text": list(titles().title), "label": pd.factorize(titles().label)[0].tolist()})
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=TOKENS), batched=True)
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(**trainer_options(batch, n_steps, precision, out))
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), train_dataset=rows)
        with steps() as seconds:
            trainer.train()
    return seconds


def setfit(shape: str, n: int) -> list[float]:
    """End to end with the settings of Tunstall et al. (2022): 20 pairs a title, one epoch, batches of 16."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    rows = titles().head(n)
    data = Dataset.from_dict({"text": list(rows.title), "label": list(rows.label)})
    with tempfile.TemporaryDirectory() as out:
        sentence_transformer(shape, projected=False).save(out)

        def work() -> None:
            model = SetFitModel.from_pretrained(out)
            arguments = TrainingArguments(out, batch_size=16, num_epochs=1, num_iterations=20, report_to="none")
            Trainer(model=model, args=arguments, train_dataset=data).train()
            model.predict(list(rows.title[:4]))

        return whole(work)


def pipeline(shape: str, n: int) -> list[float]:
    import transformers

    model, tokenizer = classifier(shape)
    serve = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=DEVICE)
    asked = list(titles().title[:n])
    serve(asked[:64], batch_size=32, truncation=True)
    return whole(lambda: serve(asked, batch_size=32, truncation=True))


def sentence_transformer_encode(shape: str, n: int) -> list[float]:
    model, asked = sentence_transformer(shape, projected=False), list(titles().title[:n])
    model.encode(asked[:64])
    return whole(lambda: model.encode(asked))


def onnxruntime_predict(shape: str, n: int) -> list[float]:
    """The exported classifier in batches of 32, each padded to its longest."""
    import onnxruntime

    model, tokenizer = classifier(shape)
    path = HOME / "models" / f"{shape}.onnx"
    if not path.is_file():
        example = dict(tokenizer(["a title", "another longer title"], padding=True, return_tensors="pt"))
        names = ["input_ids", "attention_mask"]
        some = {0: torch.export.Dim("titles", min=1, max=4096), 1: torch.export.Dim("tokens", min=1, max=512)}
        program = torch.onnx.export(
            model, (), kwargs={name: example[name] for name in names}, input_names=names, output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, some), dynamo=True,
        )  # fmt: skip
        program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    asked = list(titles().title[:n])

    def work(rows: list[str]) -> None:
        for at in range(0, len(rows), 32):
            tokens = tokenizer(rows[at : at + 32], padding=True, truncation=True, return_tensors="np")
            session.run(["logits"], {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")})

    work(asked[:64])
    return whole(lambda: work(asked))


# --- peers: pictures ---


class Pairs(torch.utils.data.Dataset):
    """Title and picture as such loops have them: a float tensor, normalised row by row."""

    def __init__(self, size: int) -> None:
        from torchvision.transforms import v2

        self.store, self.titles = pictures(512, size), list(titles().title)
        self.transform = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)]
        )

    def __len__(self) -> int:
        return len(self.titles)

    def __getitem__(self, i: int) -> tuple[str, torch.Tensor]:
        return self.titles[i], self.transform(self.store[[i % 512]][0])


def picture_loop(
    shape: str, batch: int, n_steps: int, size: int, padding: str, loss: Callable, vit: str, precision: str
) -> list[float]:
    from transformers import AutoModel, AutoTokenizer

    settings, folder = study(shape, size, vit), text_folder(shape)
    tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    text = TextTower(backbone, "mean", 768, 2).train().to(DEVICE)
    vision = VisionTower(load_vision(settings.vision), 768, 2).train().to(DEVICE)
    optimizer = torch.optim.AdamW([*text.parameters(), *vision.parameters()], lr=1e-5, weight_decay=1e-8)

    def collate(rows: list[tuple[str, torch.Tensor]]) -> tuple[Any, torch.Tensor]:
        tokens = tokenizer([row[0] for row in rows], padding=padding, max_length=TOKENS, truncation=True,
                           return_tensors="pt", return_token_type_ids=False)  # fmt: skip
        return tokens, torch.stack([row[1] for row in rows])

    workers = {"num_workers": all_cores() - 1, "pin_memory": True} if DEVICE == "cuda" else {}
    loader = DataLoader(Pairs(size), batch, True, collate_fn=collate, drop_last=True, **workers)
    with steps() as seconds:
        for _, (tokens, pixels) in zip(range(n_steps + WARM), loader):  # noqa: B905
            tokens, pixels = tokens.to(DEVICE), pixels.to(DEVICE, non_blocking=True)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
                found = loss(vision.projection(vision.backbone(pixels)), text(**tokens))
            found.backward()
            optimizer.step()
            optimizer.zero_grad()
    return seconds


def open_clip(
    shape: str, batch: int, n_steps: int, size: int, vit: str = "ViT-Ti", precision: str = "no"
) -> list[float]:
    """open_clip's loss in the loop of its training script: titles padded to the context's length, a scale."""
    from open_clip.loss import ClipLoss

    loss, scale = ClipLoss(), torch.tensor(10.0, device=DEVICE)

    def normalised(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return loss(nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1), scale)

    return picture_loop(shape, batch, n_steps, size, "max_length", normalised, vit, precision)


def lightly(shape: str, batch: int, n_steps: int, size: int, vit: str = "ViT-Ti", precision: str = "no") -> list[float]:
    from lightly.loss import NTXentLoss

    return picture_loop(shape, batch, n_steps, size, "longest", NTXentLoss(temperature=0.1), vit, precision)


def jpegs(n: int) -> Path:
    """``n`` JPEGs of 300 x 300 pixels, a table beside them."""
    from PIL import Image, ImageFilter

    folder = HOME / "jpegs"
    table = folder / "products.csv"
    if not table.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(n):
            noise = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
            noise.filter(ImageFilter.GaussianBlur(6)).save(folder / f"{i}.jpg", quality=90)
        titles().head(n).assign(image=[f"{i}.jpg" for i in range(n)]).to_csv(table, index=False)
    return table


class Files(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], size: int) -> None:
        from torchvision.transforms import v2

        self.paths, self.transform = paths, v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        from PIL import Image

        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def dataloader_ingest(n: int, size: int) -> list[float]:
    """torch's DataLoader with a process per core, Pillow and torchvision's transforms, into one array on disk."""
    paths = sorted(jpegs(n).parent.glob("*.jpg"))[:n]

    def work() -> None:
        with tempfile.TemporaryDirectory() as out:
            store = np.lib.format.open_memmap(f"{out}/a.npy", "w+", np.uint8, (n, 3, size, size))
            for i, rows in enumerate(DataLoader(Files(paths, size), 64, num_workers=all_cores())):
                store[64 * i : 64 * i + len(rows)] = rows.numpy()
            store.flush()

    return whole(work)


# --- the machine ---


def gemm(precision: str) -> list[float]:
    """FLOP/s of the best of ten products of 2,048 x 2,048 matrices; 8,192 x 8,192 on a GPU."""
    n = 2048 if DEVICE == "cpu" else 8192
    a = torch.randn(n, n, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=DEVICE)
    whole(lambda: a @ a)
    return [2 * n**3 / min(whole(lambda: a @ a)[0] for _ in range(10))]


def flops(of: str, **arguments: Any) -> list[float]:
    """FLOPs of a step of one of ours, on real tokens only."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        globals()[of](**arguments | {"n_steps": 2, "compile": False, "cuda_graphs": False})  # they would not be counted
    return [counter.get_total_flops() / (2 + WARM)]


def main() -> None:
    torch.set_num_threads(THREADS)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            answer = {"seconds": globals()[arguments.pop("call")](**arguments)}
        except ImportError as error:
            answer = {"error": f"{error}: `make bench` installs the peers"}
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        if DEVICE == "cuda":
            torch.compiler.reset()  # each call is a new user's
            torch.cuda.empty_cache()  # two processes share it
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
