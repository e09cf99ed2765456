"""Tables of every kind read the same; one that cannot be used stops with a sentence; pictures stay in their folder."""

import gzip
import json
import os
import time

import pandas as pd
import pytest
from toys import write_table

from icssl_lib.config import TableSource
from icssl_lib.images import ImageError
from icssl_lib.sources.raw import CatalogueError
from icssl_lib.sources.table import load

COLUMNS = {"sku": ["007", "008", "009"], "name": ['Lamp, 19" wide', "NA", "Étagère\u00a0 №5"]}
ROWS = pd.DataFrame(COLUMNS | {"class": ["lamp", "null", "12"], "file": ["a.png", "sub/b.png", ""]})
NAMES = {"id": "sku", "title": "name", "label": "class", "image": "file"}
CSV = ROWS.to_csv(index=False).encode()
LOOSE = ['"Vintage mug,kitchen', "Lamp,lighting", '"Retro clock,home', 'Pipe 5",tools', '"Best" pan,kitchen']


def source(path, **options) -> TableSource:
    return TableSource(source="table", table=path, **{**NAMES, **options})


@pytest.mark.parametrize(
    "name", ["p.csv", "p.tsv", "p.jsonl", "p.csv.gz", "p.tsv.gz", "p.jsonl.gz", "p.parquet", "P.CSV"]
)
def test_every_kind_of_table_reads_the_same(tmp_path, name):
    raw = load("shop", source(write_table(tmp_path / name, ROWS)))
    assert raw.table[list(NAMES)].to_numpy().tolist() == ROWS.to_numpy().tolist()
    assert raw.report.frame().empty


def test_excel_mark_and_absent_columns(tmp_path):
    (tmp_path / "p.csv").write_text("name,class,file\nLamp,lamp,a.png\nChair,,\n", encoding="utf-8-sig")
    raw = load("shop", source(tmp_path / "p.csv", id=None))
    read = raw.table[["id", "title", "label", "image"]].to_numpy().tolist()
    assert read == [["0", "Lamp", "lamp", "a.png"], ["1", "Chair", "", ""]]


def test_a_quote_that_does_not_close_swallows_no_lines(tmp_path):
    (tmp_path / "p.csv").write_text("name,class\n" + "\n".join(LOOSE) + "\n")
    with pytest.raises(CatalogueError, match=r"p\.csv: line 2: a quote that does not close .*vintage"):
        load("shop", source(tmp_path / "p.csv", id=None, image=None))
    (tmp_path / "p.tsv").write_text("name\tclass\n" + "\n".join(LOOSE).replace(",", "\t") + '\n"Two\nlines"\thome\r\n')
    raw = load("shop", source(tmp_path / "p.tsv", id=None, image=None))
    assert raw.table[["title", "label"]].to_numpy().tolist() == [
        *(line.split(",") for line in LOOSE), ["Two\nlines", "home"],
    ]  # fmt: skip
    long = '"Two lines,\nand ""quotes""",home\n'
    (tmp_path / "q.csv").write_text("name,class\n" + long)
    raw = load("shop", source(tmp_path / "q.csv", id=None, image=None))
    assert raw.table["title"].tolist() == ['Two lines,\nand "quotes"']


def test_values_that_are_no_text(tmp_path):
    rows = [{"sku": 7, "name": None, "class": 1.5, "file": None}, {"sku": True, "name": "Lamp"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    raw = load("shop", source(tmp_path / "p.jsonl"))
    assert raw.table[list(NAMES)].to_numpy().tolist() == [["7", "", "1.5", ""], ["True", "Lamp", "", ""]]
    rows = pd.DataFrame({"sku": [1, 2], "name": [b"Lamp", b"B\xff"], "class": [3, None], "file": "x"})
    rows.astype({"class": "Int64"}).to_parquet(tmp_path / "p.parquet")
    raw = load("shop", source(tmp_path / "p.parquet"))
    assert raw.table[list(NAMES)].to_numpy().tolist() == [["1", "Lamp", "3", "x"], ["2", "B\ufffd", "", "x"]]


def test_labels_from_a_second_table(tmp_path):
    labels = pd.DataFrame({"key": ["008", "007", "008"], "what": ["chair", "lamp", "stool"]})
    second = {"table": write_table(tmp_path / "l.csv", labels), "id": "key", "label": "what"}
    raw = load("shop", source(write_table(tmp_path / "p.csv", ROWS.drop(columns="class")), labels=second))
    assert raw.table["label"].tolist() == ["lamp", "chair", ""]
    assert raw.report.frame().to_numpy().tolist() == [
        ["further label of an id, in l.csv", "left out", 1, "008"],
        ["id without a label, in l.csv", "left out", 1, "009"],
    ]
    with pytest.raises(CatalogueError, match=r"l\.csv: no column 'kye'; did you mean 'key'"):
        load("shop", source(tmp_path / "p.csv", labels=second | {"id": "kye"}))


def test_paths_of_pictures_by_a_pattern(tmp_path):
    (tmp_path / "lamp").mkdir()
    (tmp_path / "lamp/007.png").write_bytes(b"here")
    raw = load("shop", source(write_table(tmp_path / "p.csv", ROWS), image="{class}/{sku}.png"))
    assert raw.table["image"].tolist() == ["lamp/007.png", "null/008.png", "12/009.png"]
    assert raw.read_image("lamp/007.png") == b"here"
    (tmp_path / "p.jsonl").write_text('{"sku": "\\ud800", "name": "a", "class": "b"}')
    assert load("shop", source(tmp_path / "p.jsonl", image="{sku}.png")).table["image"].tolist() == ["\ud800.png"]
    for pattern, column in {"{skuu}.png": "skuu", "{sku.__class__}.png": "sku.__class__", "{0}": "0"}.items():
        with pytest.raises(CatalogueError, match=f"no column '{column}'"):
            load("shop", source(tmp_path / "p.csv", image=pattern))


def test_pictures_in_a_column(tmp_path):
    files = [b"first", {"bytes": b"second", "path": None}, {"bytes": None, "path": "a.png"}, ["a.png", "b.png"]]
    (tmp_path / "a.png").write_bytes(b"third")
    for i, file in enumerate(files):
        row = pd.DataFrame({"sku": ["1"], "name": ["x"], "class": ["y"], "file": [file]})
        row.to_parquet(tmp_path / f"{i}.parquet")
        raw = load("shop", source(tmp_path / f"{i}.parquet"))
        assert raw.read_image(raw.table["image"][0]) == [b"first", b"second", b"third", b"third"][i]


def test_no_picture_column(tmp_path):
    raw = load("shop", source(write_table(tmp_path / "p.csv", ROWS.drop(columns="file")), image=None))
    assert raw.read_image is None
    assert (raw.table["image"] == "").all()


def test_a_broken_line_of_jsonl_is_dropped_and_counted(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS.to_dict("records"))
    (tmp_path / "p.jsonl").write_text(lines + '[1, 2]\n{"sku": "010", "na')
    raw = load("shop", source(tmp_path / "p.jsonl"))
    assert raw.table["id"].tolist() == ["007", "008", "009"]
    assert raw.report.frame().to_numpy().tolist() == [["line is no JSON object", "dropped", 2, "line 4: [1, 2]"]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.csv", b"", "no column 'sku'; known: "),
        ("p.csv", b"\xef\xbb\xbf \n\n", "no column 'sku'; known: "),
        ("p.jsonl.gz", gzip.compress(b"", mtime=0), "no line is a JSON object"),
        ("p.csv.gz", gzip.compress(CSV * 99, mtime=0)[:-60], r"a broken table, or no UTF-8 \("),
        ("p.csv.gz", CSV, r"a broken table, or no UTF-8 \("),
        ("p.parquet", gzip.compress(CSV, mtime=0), r"its bytes are those of gzip"),
        ("p.csv.gz", gzip.compress(gzip.compress(CSV)), r"its bytes are those of gzip"),
        ("p.csv.gz", gzip.compress(CSV.decode().encode("utf-16")), "its bytes are those of UTF-16"),
        ("p.csv.gz", gzip.compress(bytes(2**28 + 1)), r"more than 268435456 bytes when unpacked"),
        ("p.csv", b"ARROW1\0\0", "its bytes are those of a format that is not read"),
        ("p.csv", b"sku|name|class|file\n1|a|b|c\n", "no column 'sku'; its fields are separated by bars"),
        ("p.csv", b"PK\x03\x04\x14\x00", "its bytes are those of a workbook or an archive; save the sheet"),
        ("p.jsonl", b"PAR1\x15\x04", r"its bytes are those of Parquet; let its name end in \.parquet"),
        ("p.csv", CSV.decode().encode("latin-1", "replace"), "a broken table, or no UTF-8 .*codec can't decode"),
        ("p.csv", CSV.decode().encode("utf-16"), "its bytes are those of UTF-16; save it as UTF-8"),
        ("p.csv", b"\n<!DOCTYPE html><html>Sign in</html>", "no column 'sku'; known: <!DOCTYPE html>"),
        ("p.jsonl", b"<html>\n</html>", "no line is a JSON object"),
        ("p.xlsx", b"PK", r"unknown kind of table; the name must end in \.csv"),
        ("p", CSV, "unknown kind of table"),
        ("p.csv", CSV + b'010,"Lamp,lamp,a.png\n', "line 5: a quote that does not close"),
        ("p.jsonl", b"1\n[2]\n{\n", "no line is a JSON object"),
        ("p.jsonl", b"[" * 100_000, "no line is a JSON object"),
        ("p.parquet", CSV, "a broken table, .*Parquet"),
        ("p.parquet", b"", "a broken table, .*Parquet"),
        ("p.csv", b"sku,Name,klass,file\n1,a,b,c\n", "no column 'name'; did you mean 'Name'?"),
        ("p.csv", b"sku;name;class;file\n1;a;b;c\n", "no column 'sku'; its fields are separated by semicolons"),
        ("p.csv", b"sku\tname\tclass\tfile\n1\ta\tb\tc\n", "no column 'sku'; its fields are separated by tabs"),
        ("p.csv", b"sku,name,name,class,file\n1,a,b,c,d\n", "2 columns are called 'name'; rename all but one"),
        ("p.jsonl", b'{"sku": 1, "name": 2, "clas": 3, "file": 4}', "no column 'class'; did you mean 'clas'?"),
    ],
)
def test_a_table_that_cannot_be_used_stops_with_one_sentence(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CatalogueError, match=f"^dataset shop: .*{name}: {message}") as caught:
        load("shop", source(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_parquet_that_unpacks_to_far_more(tmp_path):
    rows = pd.DataFrame({"sku": range(30_000), "name": "x" * 13_000, "class": "a", "file": ""})
    rows.assign(name=rows["name"].astype("category")).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(CatalogueError, match="more than 268435456 bytes when unpacked"):
        load("shop", source(tmp_path / "p.parquet"))


@pytest.mark.parametrize("cell", [[{"bytes": bytes(10**6), "path": "a"}] * 50, ["y" * 100] * 20_000], ids=["b", "t"])
def test_lists_in_parquet_count_with_what_they_hold(tmp_path, cell):
    rows = pd.DataFrame({"sku": range(200), "name": "mug", "class": "a", "file": [cell] * 200})
    rows.to_parquet(tmp_path / "p.parquet", compression="zstd")
    with pytest.raises(CatalogueError, match="more than 268435456 bytes when unpacked"):
        load("shop", source(tmp_path / "p.parquet", image="file"))


def test_a_quote_that_never_closes_takes_linear_time(tmp_path):
    (tmp_path / "t.tsv").write_bytes(b'sku\tname\tclass\tfile\n"' + b"x\n" * 500_000)
    started = time.monotonic()
    with pytest.raises(CatalogueError, match="the header has 4 fields, unlike line 2 "):
        load("shop", source(tmp_path / "t.tsv"))
    assert time.monotonic() - started < 5


def test_unknown_column_of_parquet_and_absent_files(tmp_path):
    path = write_table(tmp_path / "p.parquet", ROWS)
    with pytest.raises(CatalogueError, match="no column 'nam'; did you mean 'name'"):
        load("shop", source(path, title="nam"))
    with pytest.raises(CatalogueError, match="no such file"):
        load("shop", source(tmp_path / "none.csv"))
    with pytest.raises(CatalogueError, match="no such image folder"):
        load("shop", source(path, image_folder=tmp_path / "none"))


def test_pictures_are_read_inside_their_folder_only(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for file in (folder / "a.png", folder / "sub" / "b.png", tmp_path / "secret", tmp_path / "pictures2"):
        file.write_bytes(file.name.encode())
    os.symlink(tmp_path / "secret", folder / "link.png")
    os.symlink(tmp_path, folder / "up")
    os.symlink(folder / "a.png", folder / "fine.png")
    os.symlink(folder / "loop.png", folder / "loop.png")
    os.symlink(folder, tmp_path / "alias")
    for given in (folder, tmp_path / "alias"):
        read = load("shop", source(write_table(tmp_path / "p.csv", ROWS), image_folder=given)).read_image
        for path in ("a.png", "./sub/../a.png", str(folder / "a.png")):
            assert read(path) == b"a.png"
        assert read("sub/b.png") == b"b.png"
        assert read("fine.png") == b"a.png"
        up = ("../../etc/passwd", "/etc/passwd", "../secret", "../pictures2", "link.png", "up/secret", str(tmp_path))
        for path in up:
            with pytest.raises(ImageError) as caught:
                read(path)
            assert caught.value.reason == "outside the folder", path
        for path in ("", "none.png", ".", "sub", "loop.png", "a\0.png", "x" * 300, "https://shop.example/a.png"):
            with pytest.raises(ImageError) as caught:
                read(path)
            assert caught.value.reason == "missing", path
