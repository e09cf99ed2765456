"""What users bring: a row is called as its case in ../shared/cases, makes such inputs itself and asserts what comes."""

import shutil
import struct
import sys
import tempfile
from functools import partial
from pathlib import Path
from unicodedata import normalize

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import toys
from PIL import Image, PngImagePlugin
from sentence_transformers import SentenceTransformer
from sentencepiece import SentencePieceTrainer
from transformers import AutoModelForSequenceClassification, DebertaV2Config, DebertaV2Model, pipeline

from icssl_lib.adapt import adapt, save
from icssl_lib.catalogue import ingest
from icssl_lib.classify import CatalogueError, check_catalogue, check_models, classify, named
from icssl_lib.config import Run, TableSource, TextConfig, VisionConfig
from icssl_lib.encoders import ModelError, VisionTower, embed_titles, load_text, load_vision, save_pretrained, tokenize
from icssl_lib.explore import explore
from icssl_lib.finetune import Start
from icssl_lib.notebooks import execute

SHARED, COLOUR, CLOSE = Path(__file__).parents[2] / "shared/cases", (200, 30, 90), {"rtol": 1e-4, "atol": 1e-5}
ROWS = [[f"{i:02d}", f"alma {name} {i}", name, f"{i:02d}.png"] for i, name in enumerate(["mug", "lamp", "rug"] * 8)]
SHOP = pd.DataFrame(ROWS, columns=["sku", "title", "category", "image"])
CSV, TITLES, PLAIN = SHOP.to_csv(index=False), list(SHOP.title), Image.new("RGB", (16, 16), COLOUR)


def read(folder, content=SHOP, name="p.csv", like="", files=SHOP.image, pictures=()):
    """The catalogue of a table, written as ``like`` and renamed, with ``files``; ``pictures`` are the first of them."""
    path, sound = folder / (like or name), [toys.encode(PLAIN)] * (len(files) - len(pictures))
    path.write_text(content) if isinstance(content, str) else toys.write_table(path, content)
    for file, data in zip(files, [*pictures, *sound], strict=True):
        (folder / file).write_bytes(data)
    options = {"id": "sku", "label": "category", "missing_image": "keep"}
    source = TableSource(source="table", table=path.rename(folder / name), **options)
    return ingest("shop", source, 16, 0, folder / "out", progress=False)


def table(folder, text, patch, expected=(), content=SHOP, **written):
    """An error, or a report (reason, action, count, example), all texts, and the pictures of which it says nothing."""
    if isinstance(expected, str):
        with pytest.raises(CatalogueError, match=f"dataset shop: {folder}/{expected}"):
            read(folder, content, **written)
        return None
    catalogue = read(folder, content, **written)
    assert catalogue.report.to_numpy().tolist() == [[*expected]] * bool(expected)
    assert list(catalogue.products.title) == list(content.title)
    assert set(catalogue.products.label) == {normalize("NFC", label) for label in content.category}
    assert (catalogue.products.image_row < 0).sum() == (expected[2] if "picture" in str(expected) else 0)
    assert abs(catalogue.images.astype(int) - COLOUR).max() < 9
    return catalogue


def csv_raw_newline(*given):
    expected = r"p.csv: the header has 4 fields, unlike line 7 \(2\), 8 \(3\), 28 \(5\); quote texts that hold"
    lines = CSV.replace("alma rug 5", "alma\nrug 5").replace("alma mug 9", '"alma\nmug 9"')
    table(*given, expected, lines + "24,a, red mug,mug,\n")
    many = SHOP.head(0).to_csv(index=False, sep="\t") + "mug\n" * 25
    table(*given, r"p.tsv: .* line 2 \(1\), .*11 \(1\) and 15 more;", many, name="p.tsv")


def name_tsv_csv(*given):
    for like, name in (("p.csv", "p.tsv.csv"), ("p.tsv", "p.csv.tsv"), ("p.csv.gz", "a.jsonl.csv.gz")):
        table(*given, like=like, name=name)


def jsonl_label_list(*given):
    for value, kind in ((["home", "mug"], "a list"), ({"a": 1}, "an object"), ([], "a list")):
        expected = f"p.jsonl: column 'category' holds {kind}, expected a text: "
        table(*given, expected, SHOP.assign(category=["mug", "rug", value] * 8), name="p.jsonl")


def label_names_hindi(*given):
    names = {"किताबें_और/खिलौने": "किताबें और खिलौने", "مُعَدّات": "مُعَدّات", "กาแฟ+ชา": "กาแฟ ชา", "Caf\xe9": "Caf\xe9"}
    titles = named(list(table(*given, content=SHOP.assign(category=[*names] * 6)).products.label)).title
    assert set(titles) == set(names.values())


def picture_not_one(*given):
    pages = [b"<!DOCTYPE html><p>404", b'<svg xmlns="http://www.w3.org', b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    for page in (*pages, b""):
        begins = f"begins with {page[:24]}" if page else "an empty file"
        example = f"00: picture not recognised: {begins}; supported: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"
        table(*given, ("picture not recognised", "kept", 1, example), pictures=[page])


def all_pictures_missing(folder, text, patch):
    catalogue, study = read(folder, SHOP.assign(image=".\\" + SHOP.image)), toys.study(text, folder)
    check_catalogue(study.model_copy(update={"methods": ["origin"]}), catalogue)  # titles are enough for it
    message = r"shop: 0 of 24 products have a picture; 00: picture missing: /.*\\00\.png; .*leave out convirt$"
    with pytest.raises(CatalogueError, match=message):
        check_catalogue(study.model_copy(update={"methods": ["origin", "convirt"]}), catalogue)


def explore_hf_parquet(folder, text, patch):
    """As the datasets library writes pictures; then pictures and encoders of every kind, and a home in their paths."""
    content = SHOP.assign(image=[{"bytes": toys.encode(PLAIN), "path": name} for name in SHOP.image])
    table(folder, text, patch, content=content, name="p.parquet")
    space = explore(pd.read_parquet(folder / "p.parquet"), {})
    assert all(abs(space.picture(row).astype(int) - COLOUR).max() < 9 for row in range(24))
    lists = [["00.png", "gone.png"], np.array(["00.png"], object), [], ["gone.png"]]
    kinds = [PLAIN, np.asarray(PLAIN), toys.encode(PLAIN), folder / "00.png", "~/00.png", *lists, "~nobody/x"]
    patch.setenv("HOME", str(folder))
    (folder / "model").symlink_to(text)
    encoders = {"folder": Path(text), "object": SentenceTransformer(str(text), device="cpu"), "home": "~/model"}
    rows = pd.DataFrame({"title": TITLES[:10], "image": pd.Series(kinds, dtype=object)})
    space = explore(rows, encoders, images="~")
    pictures = [space.picture(row) for row in range(10)]
    assert all(abs(picture.astype(int) - COLOUR).max() < 9 for picture in pictures[:7])
    assert pictures[7:] == [None] * 3
    for view in space.views.values():
        torch.testing.assert_close(view.titles, space.views["folder"].titles, **CLOSE)


def no_model(folder, text, patch, message, max_tokens=32, without="", files=()):
    """A copy of a sound folder, without a file or with others: refused before a study begins, and by `explore`."""
    model = shutil.copytree(text, folder / "model", ignore=shutil.ignore_patterns(without))
    for name, content in files:
        (model / name).write_text(content)
    for load in (check_models, lambda study: explore(SHOP, {"mine": study.text.model}, max_tokens=max_tokens)):
        with pytest.raises(ModelError, match=rf"text\.model: .*{message}"):
            load(toys.study(model, folder, text={"max_tokens": max_tokens}))


def model_left_padding(folder, text, patch):
    backbone, tokenizer = load_text(str(text))
    tokenizer.padding_side = "left"
    save_pretrained(backbone, tokenizer, folder / "left")
    model, titles = load_text(str(folder / "left")), ["alma mug 12 rug vase dena 5", "7", *TITLES]
    alone = torch.cat([embed_titles(*model, [title], TextConfig()) for title in titles])
    torch.testing.assert_close(embed_titles(*model, titles, TextConfig()), alone, **CLOSE)


def model_sentencepiece(folder, text, patch):
    """What requirements.lock installs reads a folder whose only vocabulary is spm.model, such as DeBERTa's."""
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    pieces |= {name.replace("piece", "id"): i for i, name in enumerate(pieces)}
    options = {"vocab_size": 30, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(TITLES), model_prefix=str(folder / "spm"), **pieces, **options)
    shape = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 2, "type_vocab_size": 0}
    DebertaV2Model(DebertaV2Config(**shape, num_hidden_layers=1, intermediate_size=16)).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    tokenizer = load_text(str(folder), 24)[1]
    assert not (tokenize(tokenizer, TITLES, 24)["input_ids"] == tokenizer.unk_token_id).any()
    assert "\nsentencepiece==" in (Path(__file__).parents[1] / "requirements.lock").read_text()


def classifier(folder, text, patch, **old):
    """What is trained from a classifier's folder is what is trained from its encoder; its scores add up to 1."""
    AutoModelForSequenceClassification.from_pretrained(text, **old).save_pretrained(folder / "old")
    toys.tokenizer(text).save_pretrained(folder / "old")
    catalogue, study, run = read(folder), toys.study(text, folder), Run("shop", "origin", 0)
    starts = [Start(str(text)), Start(str(folder / "old"))]
    plain, found = (classify(run, 1.0, catalogue, study, at, folder / "kept").predictions for at in starts)
    pd.testing.assert_frame_equal(found, plain)
    serve = pipeline("text-classification", model=str(folder / "kept"), device="cpu", top_k=None)
    scores = [[each["score"] for each in answer] for answer in serve(list(catalogue.part("test").title))]
    assert np.sum(scores, axis=1) == pytest.approx(1)
    assert np.max(scores, axis=1) == pytest.approx(list(found.confidence), abs=1e-4)


def pooling_cls_sentence_transformers(folder, text, patch):
    catalogue, run = read(folder), Run("shop", "simcse", 0)
    for pooling in ("mean", "cls"):
        study, model = toys.study(text, folder, text={"pooling": pooling}), str(folder / pooling)
        save(adapt(run, catalogue, study, progress=False), Path(model))
        found = explore(SHOP, {"mine": model}).views["mine"].titles
        expected = torch.as_tensor(SentenceTransformer(model, device="cpu").encode(TITLES))
        torch.testing.assert_close(found, expected, **CLOSE)
        by_mean = embed_titles(*load_text(model), TITLES, TextConfig(pooling="mean"))
        assert torch.equal(found, by_mean) == (pooling == "mean")


def vision_mobilenet(folder, text, patch):
    for model in ("mobilenetv3_small_050", "resnet10t", "test_convnext"):
        tower = VisionTower(load_vision(VisionConfig(model=model, random=True, image_size=64)), 16, 2).eval()
        pixels = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
        assert (tower.embed(pixels).shape, tower(pixels).shape) == ((2, tower.width), (2, 16))


def kernel(folder, text, patch, variable, name):
    """A notebook runs in this environment although ``variable`` names a folder that is long or holds other kernels."""
    (folder / name / "kernels/python3").mkdir(parents=True)
    other = '{"argv": ["false"], "display_name": "other", "language": "python"}'
    (folder / name / "kernels/python3/kernel.json").write_text(other)
    for key, value in {"JUPYTER_PATH": "", "JUPYTER_RUNTIME_DIR": "", "MPLBACKEND": "Agg"}.items():
        patch.setenv(key, value)  # `execute` changes them
    patch.setenv(variable, str(folder / name))
    patch.setattr(tempfile, "tempdir", None)
    notebook = toys.write_notebook(folder / "a.ipynb", "seed = 0", "import sys; print(sys.prefix)")
    execute(notebook, folder / "out.ipynb", {"seed": 1})
    assert nbformat.read(folder / "out.ipynb", 4).cells[-1].outputs[0].text == f"{sys.prefix}\n"


JAPANESE = '{"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}'
LONG = SHOP.assign(text="x" * 140_000)[["sku", "text", "title", "category", "image"]]
LINES = LONG.assign(text=LONG.text.where(SHOP.index < 1, "one\ntwo"), title='the "best" ' + SHOP.title)
FORMS = [[normalize(form, f"caf\xe9-{name}") for name in SHOP.image] for form in ("NFC", "NFD")]
WORDS = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, 0x112, 2, 3, b"up", 0)  # of an orientation
COMMENT = PngImagePlugin.PngInfo()
COMMENT.add_text("Comment", "x" * 2_000_000, zip=True)
SOUND = [toys.encode(PLAIN, pnginfo=COMMENT), toys.encode(PLAIN, icc_profile=b"no")]  # but what is beside the pixels
SOUND += [toys.encode(PLAIN, kind, exif=exif) for kind in ("JPEG", "WEBP", "PNG") for exif in (WORDS, b"Exif\0\0no")]
CASES = {
    "model-no-tokenizer": partial(no_model, message="holds no tokenizer", without="*token*"),
    "model-max-tokens": partial(no_model, message=r"reads at most 64 tokens; lower text\.max_tokens", max_tokens=65),
    "model-japanese": partial(no_model, message="fugashi",
                              files=[("tokenizer_config.json", JAPANESE), ("vocab.txt", "[UNK]")]),
    "model-classifier-same-count": partial(classifier, id2label={0: "rug", 1: "mug", 2: "lamp"}),
    "model-classifier-other-count": partial(classifier, num_labels=7),
    "model-problem-type": partial(classifier, problem_type="multi_label_classification"),
    "csv-long-field": partial(table, content=LONG, name="p.csv.gz"),
    "tsv-long-field": partial(table, content=LINES, name="p.tsv.gz"),
    "csv-is-gzip": partial(table, expected=r"p.csv: its bytes are those of gzip; .* end in \.gz", like="p.csv.gz"),
    "jsonl-image-list": partial(table, content=SHOP.assign(image=[[n, "b.png"] for n in SHOP.image]), name="p.jsonl"),
    "csv-nan-labels": partial(table, expected=("label that reads as if it were missing", "kept", 16, "00: nan"),
                              content=SHOP.assign(category=["nan", "None", "NULL", "N/A", "mug", "rug"] * 4)),
    "label-nfc-nfd": partial(table, expected=("another Unicode form in label", "repaired", 8, "01: Cafe\u0301"),
                             content=SHOP.assign(category=["Caf\xe9", "Cafe\u0301", "rug"] * 8)),
    "path-nfd": partial(table, content=SHOP.assign(image=FORMS[0][:12] + FORMS[1][12:]),
                        files=FORMS[1][:12] + FORMS[0][12:]),
    "picture-avif": partial(table, pictures=[toys.encode(PLAIN, "AVIF")] * 24),
    "picture-broken-exif": partial(table, pictures=SOUND),
    "long-tmpdir": partial(kernel, variable="TMPDIR", name="long" * 30),
    "jupyter-path": partial(kernel, variable="JUPYTER_PATH", name="jupyter"),
}  # fmt: skip
CASES |= {row.__name__.replace("_", "-"): row for row in (
    model_left_padding, model_sentencepiece, pooling_cls_sentence_transformers, vision_mobilenet, csv_raw_newline,
    name_tsv_csv, jsonl_label_list, label_names_hindi, picture_not_one, all_pictures_missing, explore_hf_parquet,
)}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_case_gives_what_is_expected(case, tmp_path, tiny_text, monkeypatch):
    CASES[case](tmp_path, tiny_text, monkeypatch)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the cases lie beside the project's folder, not in it")
def test_no_case_is_forgotten():
    assert sorted(CASES) == sorted(path.name for path in SHARED.iterdir() if path.is_dir())
