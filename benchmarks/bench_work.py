"""What `make bench` times: each function does a piece of work once, ours or a peer's, and returns its seconds.

Peers are run as their own documentation runs them, on the same model, titles, pictures and batch size. All models have
random weights: speed does not depend on what a weight is. A training is timed by torch's hook behind every optimiser's
step, the same for all: seconds from step to step.
"""

import copy
import functools
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from joblib import cpu_count
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from icssl_lib import adapt, classify, deploy, finetune
from icssl_lib.catalogue import Catalogue, split_hash
from icssl_lib.config import Run, Study, SyntheticSource
from icssl_lib.encoders import TextTower, VisionTower, embed_titles, load_text, load_vision, save_pretrained, tokenize
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.sources import synthetic
from icssl_lib.sources.synthetic.pretrain import train_tokenizer

HOME = Path(os.environ.get("ICSSL_BENCH", "runs/bench")).resolve()
SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
}
VISION = {"ViT-Ti": "vit_tiny_patch16_224", "ViT-B": "vit_base_patch16_224", "ViT-L": "vit_large_patch16_224"}
DEVICE = os.environ.get("ICSSL_DEVICE", "cpu")
THREADS = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
TITLES, CLASSES, TOKENS = 5000 if DEVICE == "cpu" else 20000, 100, 32
WARM = 2 if DEVICE == "cpu" else 8  # the first steps fill caches, and on a GPU some compile


def print_to(log: Path) -> None:
    """What libraries print goes to a file; for a process that does nothing but such work."""
    torch.set_num_threads(THREADS)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


# --- models and data ---


@functools.cache
def titles() -> pd.DataFrame:
    """The embedded catalogue's beauty genre: title, label."""
    source = SyntheticSource(source="synthetic", genre="beauty", products=TITLES, classes=CLASSES)
    return synthetic.load("beauty", source).table[["title", "label"]].sample(frac=1, random_state=0, ignore_index=True)


def text_folder(shape: str) -> str:
    """A BERT of this shape with random weights, as a Hugging Face folder."""
    folder = HOME / "models" / shape
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        tokenizer = train_tokenizer(list(titles().title), 30522)
        tokenizer.model_max_length = TOKENS
        config = transformers.BertConfig(vocab_size=30522, **SHAPES[shape])
        save_pretrained(transformers.BertModel(config), tokenizer, folder)
    return str(folder)


def pictures(n: int, size: int) -> np.ndarray:
    path = HOME / f"pictures{size}.npy"
    if not path.is_file():
        HOME.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))
    return np.load(path, mmap_mode="r")


def catalogue(n: int, part: str, images: np.ndarray | None = None) -> Catalogue:
    """``n`` products in one part, two in Dev and two in Test, which so cost nothing."""
    products = titles().head(n + 4).copy()
    products["id"] = products.index.astype(str)
    products["image_row"] = products.index % len(images) if images is not None else -1
    products["part"] = [part] * n + ["dev"] * 2 + ["test"] * 2
    if part != "train":
        products.loc[0, "part"] = "train"
    return Catalogue("bench", products, images, pd.DataFrame(), split_hash(products), HOME)


def study(shape: str, size: int = 224, vit: str = "ViT-Ti", sections: Any = None, **runtime: Any) -> Study:
    about = {
        "study": "bench",
        "datasets": {"bench": {"source": "synthetic", "genre": "beauty"}},
        "text": {"model": text_folder(shape), "max_tokens": TOKENS},
        "vision": {"model": VISION[vit], "image_size": size, "random": True},
        "runtime": {"device": DEVICE, "precision": "auto", "threads": THREADS} | runtime,
    }
    return Study.model_validate(about | (sections or {}))


def steps(train: Callable[[], Any]) -> list[float]:
    """Seconds of each optimiser's step but the first few; on a GPU by its own clock, without a wait."""
    at: list[Any] = []

    def now(*_: Any) -> None:
        at.append(torch.cuda.Event(enable_timing=True) if DEVICE == "cuda" else time.perf_counter())
        if DEVICE == "cuda":
            at[-1].record()

    handle = register_optimizer_step_post_hook(now)
    try:
        train()
    finally:
        handle.remove()
    if DEVICE == "cpu":
        return np.diff(at[WARM - 1 :]).tolist()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # two processes share it
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(at[WARM - 1 :])]


def whole(work: Callable[[], Any]) -> list[float]:
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return [time.perf_counter() - started]


# --- ours ---


def ours_adapt(method: str, batch: int, n_steps: int, size: int = 224, **options: Any) -> list[float]:
    n = batch * (n_steps + WARM) + 1  # of which one goes to Train
    images = pictures(512, size) if method == "convirt" else None
    settings = study(size=size, sections={"adapt": {"epochs": 1, "batch_size": batch}}, **options)
    run = Run("bench", method, 0)
    return steps(lambda: adapt.adapt(run, catalogue(n, "ssl", images), settings, progress=False))


def ours_classifier(n: int, settings: Study) -> None:
    start = finetune.Start(settings.text.model, settings.vision, None)
    classify.classify(Run("bench", "origin", 0), 1.0, catalogue(n, "train"), settings, start)


def ours_finetune(batch: int, n_steps: int, **options: Any) -> list[float]:
    settings = study(sections={"finetune": {"epochs": 1, "batch_size": batch}}, **options)
    return steps(lambda: ours_classifier(batch * (n_steps + WARM), settings))


def ours_few_labels(n: int, **options: Any) -> list[float]:
    """End to end as the paper fine-tunes: 30 epochs."""
    return whole(lambda: ours_classifier(n, study(**options)))


def ours_predict(shape: str, n: int, **options: Any) -> list[float]:
    settings, (model, tokenizer), products = study(shape, **options), classifier(shape), titles().head(n)
    accelerator = make_accelerator(settings.runtime)

    def read(products: pd.DataFrame) -> None:
        finetune.outputs(model, tokenize(tokenizer, list(products.title), TOKENS), accelerator).softmax(-1)

    with fast(model, settings.runtime.fast):  # as a classifier that was trained is read
        read(products.head(64))
        return whole(lambda: read(products))


def ours_embed(shape: str, n: int) -> list[float]:
    settings, (backbone, tokenizer), asked = study(shape), load_text(text_folder(shape)), list(titles().title[:n])
    accelerator = make_accelerator(settings.runtime)
    backbone.to(accelerator.device, torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32)
    with fast(backbone):
        embed_titles(backbone, tokenizer, asked[:64], settings.text)
        return whole(lambda: embed_titles(backbone, tokenizer, asked, settings.text))


# --- peers: sentence-transformers, SimCSE, SetFit, transformers ---


@functools.cache
def classifier(shape: str) -> tuple[nn.Module, Any]:
    folder = text_folder(shape)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES, dtype=torch.float32)
    return model.eval().to(DEVICE), AutoTokenizer.from_pretrained(folder)


def sentence_transformer(shape: str, projected: bool) -> Any:
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(text_folder(shape), max_seq_length=TOKENS)
    width = transformer.get_word_embedding_dimension()
    modules = [transformer, models.Pooling(width)]
    if projected:  # the head that ours has
        modules += [models.Dense(width, width, activation_function=nn.ReLU())]
        modules += [models.Dense(width, 768, activation_function=nn.Identity())]
    return SentenceTransformer(modules=modules, device=DEVICE)


def trainer_options(batch: int, n_steps: int, precision: str) -> dict[str, Any]:
    options = {"output_dir": str(HOME / "trainer"), "per_device_train_batch_size": batch, "max_steps": n_steps + WARM}
    options |= {"bf16": precision == "bf16", "use_cpu": DEVICE == "cpu", "report_to": "none", "disable_tqdm": True}
    return options | {"save_strategy": "no", "logging_strategy": "no"}


def sentence_transformers_simcse(shape: str, batch: int, n_steps: int, precision: str = "no") -> list[float]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses

    model, asked = sentence_transformer(shape, projected=True), list(titles().title)
    pairs = Dataset.from_dict({"anchor": asked, "positive": asked})
    arguments = SentenceTransformerTrainingArguments(**trainer_options(batch, n_steps, precision))
    loss = losses.MultipleNegativesRankingLoss(model, scale=10.0)
    return steps(SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train)


def hf_trainer(shape: str, batch: int, n_steps: int, precision: str = "no") -> list[float]:
    from datasets import Dataset

    model, tokenizer = classifier(shape)
    rows = Dataset.from_dict({"text": list(titles().title), "label": pd.factorize(titles().label)[0].tolist()})
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=TOKENS), batched=True)
    arguments = transformers.TrainingArguments(**trainer_options(batch, n_steps, precision))
    collate = transformers.DataCollatorWithPadding(tokenizer)
    return steps(transformers.Trainer(copy.deepcopy(model), arguments, collate, train_dataset=rows).train)


def setfit(shape: str, n: int) -> list[float]:
    """End to end with the settings of Tunstall et al. (2022): 20 pairs a title, one epoch, batches of 16."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    rows, out = titles().head(n), str(HOME / "setfit")
    data = Dataset.from_dict({"text": list(rows.title), "label": list(rows.label)})
    sentence_transformer(shape, projected=False).save(out)

    def work() -> None:
        model = SetFitModel.from_pretrained(out)
        arguments = TrainingArguments(out, batch_size=16, num_epochs=1, num_iterations=20, report_to="none")
        Trainer(model=model, args=arguments, train_dataset=data).train()
        model.predict(list(rows.title[:4]))

    return whole(work)


def pipeline(shape: str, n: int) -> list[float]:
    (model, tokenizer), asked = classifier(shape), list(titles().title[:n])
    serve = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=DEVICE)
    serve(asked[:64], batch_size=32, truncation=True)
    return whole(lambda: serve(asked, batch_size=32, truncation=True))


def sentence_transformer_encode(shape: str, n: int) -> list[float]:
    model, asked = sentence_transformer(shape, projected=False), list(titles().title[:n])
    model.encode(asked[:64])
    return whole(lambda: model.encode(asked))


def onnxruntime_predict(shape: str, n: int) -> list[float]:
    """The exported classifier in batches of 32, each padded to its longest."""
    import onnxruntime

    (model, tokenizer), folder, out = classifier(shape), HOME / "models" / f"{shape}-labels", HOME / "onnx" / shape
    if not (out / "model.onnx").is_file():
        save_pretrained(model, tokenizer, folder)
        deploy.export_onnx(folder, out)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    asked = list(titles().title[:n])

    def work(rows: list[str]) -> None:
        for at in range(0, len(rows), 32):
            tokens = tokenizer(rows[at : at + 32], padding=True, truncation=True, return_tensors="np")
            session.run(["logits"], {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")})

    work(asked[:64])
    return whole(lambda: work(asked))


# --- peers: pictures ---


def picture_loop(
    shape: str, batch: int, n_steps: int, size: int, vit: str, precision: str, padding: str, loss: Callable
) -> list[float]:
    """Titles padded to ``padding``; pictures normalised row by row."""
    from torchvision.transforms import v2

    (backbone, tokenizer), store = load_text(text_folder(shape)), pictures(512, size)
    text, vision = TextTower(backbone, "mean", 768, 2), VisionTower(load_vision(study(shape, size, vit).vision), 768, 2)
    normal = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3)])

    def collate(rows: list[tuple[int, str]]) -> list[Any]:
        tokens = tokenizer([title for _, title in rows], padding=padding, max_length=TOKENS, truncation=True,
                           return_tensors="pt", return_token_type_ids=False)  # fmt: skip
        return [tokens, torch.stack([normal(store[[i % 512]][0]) for i, _ in rows])]

    model = nn.ModuleList([text, vision]).train().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    workers = {"num_workers": cpu_count() - 1, "pin_memory": True} if DEVICE == "cuda" else {}
    rows = list(enumerate(titles().title))
    loader = DataLoader(rows, batch, True, collate_fn=collate, drop_last=True, **workers)

    def train() -> None:
        for tokens, pixels in itertools.islice(loader, n_steps + WARM):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
                found = vision.projection(vision.backbone(pixels.to(DEVICE, non_blocking=True)))
                found = loss(found, text(**tokens.to(DEVICE)))
            found.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps(train)


def open_clip(precision: str = "no", **options: Any) -> list[float]:
    """open_clip's loss in the loop of its training script: titles padded to the context's length, a scale."""
    from open_clip.loss import ClipLoss

    def loss(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor(10.0, device=DEVICE)
        return ClipLoss()(nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1), scale)

    return picture_loop(precision=precision, padding="max_length", loss=loss, **options)


def lightly(precision: str = "no", **options: Any) -> list[float]:
    from lightly.loss import NTXentLoss

    return picture_loop(precision=precision, padding="longest", loss=NTXentLoss(temperature=0.1), **options)
