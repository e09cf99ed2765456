"""The three vintages of the Amazon data, each in its own syntax, with what is known to be wrong in them."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icssl_lib.catalogue import CatalogueError
from icssl_lib.config import AmazonSource, ConfigError, load_config
from icssl_lib.images import ImageError
from icssl_lib.sources import amazon
from icssl_lib.sources.amazon import LOG, canonical_url, load, picture_path, read_products

VINTAGES = (2014, 2018, 2023)
URL = "https://m.media-amazon.com/images/I/41abc.jpg"


def line(vintage: int, asin="B001", title="Red mug", path=("Home", "Mugs"), url=URL, **more) -> str:
    """One product as the vintage writes it; None leaves a field out."""
    if vintage == 2014:
        record = {"asin": asin, "title": title, "imUrl": url, "categories": path and [list(path)]}
        return repr({k: v for k, v in (record | more).items() if v is not None})
    if vintage == 2018:
        record = {"asin": asin, "title": title, "category": path and list(path), "imageURL": url and [url]}
    else:
        images = url and [{"thumb": url, "large": url, "hi_res": None, "variant": "MAIN"}]
        record = {"parent_asin": asin, "title": title, "categories": path and list(path), "images": images}
    return json.dumps({k: v for k, v in (record | more).items() if v is not None})


def source(folder, vintage: int, lines: list[str | bytes], **options) -> AmazonSource:
    """A local metadata file of these lines, and a log that knows no picture."""
    data = b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in lines)
    (folder / "meta.json.gz").write_bytes(gzip.compress(data))
    (folder / LOG).touch()
    settings = {"source": "amazon", "vintage": vintage, "meta": str(folder / "meta.json.gz"), "folder": folder}
    return AmazonSource(**settings | options)


def rows(raw) -> list[list[str]]:
    return raw.table[["id", "title", "label"]].to_numpy().tolist()


def dropped(raw) -> dict[str, int]:
    return {reason: count for reason, _, count, _ in raw.report.frame().itertuples(index=False)}


@pytest.mark.parametrize("vintage", VINTAGES)
def test_each_vintage_reads_the_same_products(tmp_path, vintage):
    """Entities are unescaped once, in titles and labels; what lacks a field is dropped and counted with its line."""
    lines = [
        line(vintage),
        line(vintage, "B002", "Salt &amp; Pepper &amp;amp; more &#39;n", ("Home", "Salt &amp; Pepper")),
        line(vintage, None),
        line(vintage, "B004", None),
        line(vintage, "B005", "  "),
        line(vintage, "B006", path=None),
        line(vintage, "B007", path=()),
        line(vintage, "B008", url=None),
        line(
            vintage, "B009", url="http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
        ),
        line(vintage, "B010", "x" * amazon.MAX_LINE),
        "",
        "no product at all",
        "[1, 2]",
        line(vintage, "B001", "Red mug again"),
    ]
    raw = load("toys", source(tmp_path, vintage, lines))
    assert rows(raw) == [
        ["B001", "Red mug", "Mugs"],
        ["B002", "Salt & Pepper &amp; more 'n", "Salt & Pepper"],
        ["B001", "Red mug again", "Mugs"],  # ingest drops and counts repeated ids of any source
    ]
    assert dropped(raw) == {
        "no asin": 1,
        "no title": 2,
        "no category": 2,
        "no picture named": 1,
        "placeholder in place of a picture": 1,
        f"line of more than {amazon.MAX_LINE} bytes": 1,
        f"line not in the syntax of {vintage}": 2,
    }
    examples = dict(raw.report.frame()[["reason", "example"]].to_numpy())
    assert examples["no category"].startswith("line 6: {")
    assert set(raw.report.frame()["action"]) == {"dropped"}


@pytest.mark.parametrize("vintage", VINTAGES)
def test_products_without_a_picture_are_kept_where_the_config_says_so(tmp_path, vintage):
    icon = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._V192198896_.gif"
    lines = [line(vintage), line(vintage, "B002", url=None), line(vintage, "B003", url=icon)]
    raw = load("toys", source(tmp_path, vintage, lines, missing_image="keep"))
    assert raw.table["image"].tolist() == [picture_path(URL), "", ""]
    with pytest.raises(ImageError) as caught:
        raw.read_image("")
    assert caught.value.reason == "missing"


@pytest.mark.parametrize("vintage", VINTAGES)
def test_page_source_is_no_title(tmp_path, vintage):
    pages = [
        "\n    var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();",
        "Mug $(function () { return 1; })",
        '<span id="productTitle" class="a-size-large">Red mug</span>',
        "&lt;!DOCTYPE html&gt;",
    ]
    titles = ["Multi function (black) mug", "<3 Hearts mug", "Mug, a < b"]
    lines = [line(vintage, f"B{i}", title) for i, title in enumerate(pages + titles)]
    raw = load("toys", source(tmp_path, vintage, lines))
    assert raw.table["title"].tolist() == titles
    assert dropped(raw) == {"page source in place of a title": len(pages)}


def test_the_label_is_the_leaf_of_the_deepest_path(tmp_path):
    paths = [
        (
            [["Home"], ["Sport", "Hiking", "Mugs"], ["Home", "Kitchen", "Cups"]],
            "Mugs",
        ),  # the first of equally deep ones
        ([["Home", "Mugs"], ["Home", "Kitchen", "Cups"]], "Cups"),
        ([["Home"]], "Home"),
        ([[], ["Home", ""]], "Home"),
    ]
    lines = [line(2014, f"B{i}", categories=path) for i, (path, _) in enumerate(paths)]
    assert load("toys", source(tmp_path, 2014, lines)).table["label"].tolist() == [leaf for _, leaf in paths]
    lines = [line(2018, path=("Home", "Mugs", "</span></span></span>")), line(2018, "B002", category="Mugs")]
    raw = load("toys", source(tmp_path, 2018, lines))
    assert raw.table["label"].tolist() == ["Mugs"]
    assert dropped(raw) == {"no category": 1}


def test_a_2014_line_is_read_and_never_run(tmp_path):
    hostile = [
        f"{{'asin': __import__('os').system('touch {tmp_path}/run')}}",
        f"open('{tmp_path}/run', 'w')",
        "(" * 50_000,
        "-" * 100_000 + "1",
        "{'asin': 9**9**9}",
        "{" * 90 + "1" + "}" * 90,
        "{'asin': " + "9" * 5000 + "}",
        "{[]: 1}",
    ]
    raw = load("toys", source(tmp_path, 2014, [*hostile, line(2014, title="\\d not an escape")]))
    assert len(raw.table) == 1
    assert dropped(raw) == {"line not in the syntax of 2014": len(hostile)}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("vintage", VINTAGES)
def test_texts_that_are_no_unicode(tmp_path, vintage):
    lines = [line(vintage, title="Mug \ud800"), line(vintage, "B002", "Caf\0").encode().replace(b"Caf", b"Caf\xe9")]
    lines.append(line(vintage, "B003", url="http://127.0.0.1/\ud800.jpg"))
    raw = load("toys", source(tmp_path, vintage, lines))
    assert [title[:4] for title in raw.table["title"]] == ["Mug ", "Caf\ufffd", "Red "]
    assert raw.table["image"].str.fullmatch(r"pictures/[0-9a-f]{2}/[0-9a-f]{22}").all()


@pytest.mark.parametrize(
    "url",
    [
        "http://ecx.images-amazon.com/images/I/41abc+d%2BeL.jpg",
        "http://ecx.images-amazon.com/images/I/41abc%2Bd%2BeL._SX300_.jpg",
        "https://images-na.ssl-images-amazon.com/images/I/41abc+d+eL._SX38_SY50_CR,0,0,38,50_.jpg",
        "http://g-ecx.images-amazon.com/images/I/41abc+d+eL._BO2,204,203,200_PIsitb-sticker-v3-big,TopRight_AA300_.jpg",
        "https://m.media-amazon.com/images/I/41abc%2bd+eL._AC_.jpg",
        "http://m.media-amazon.com/images/I/41abc+d+eL.jpg?x=1#y",
    ],
)
def test_one_picture_has_one_address(url):
    assert canonical_url(url) == "https://m.media-amazon.com/images/I/41abc+d+eL.jpg"


def test_other_addresses_stay_apart():
    for url in ("http://127.0.0.1:81/a/b.jpg", "ftp://m.media-amazon.com/a.jpg", "a.jpg", "", "http://[::1/a.jpg"):
        assert canonical_url(url) == url
    assert canonical_url("https://m.media-amazon.com.evil.example/a.jpg").startswith("https://m.media-amazon.com.evil")
    assert canonical_url("http://evil.example/images-amazon.com/a.jpg").startswith("http://evil.example/")
    assert picture_path("http://x.example/1.jpg") != picture_path("http://x.example/2.jpg")


@given(st.text(max_size=60) | st.builds("http://m.media-amazon.com/{}".format, st.text(max_size=60)))
def test_no_address_leads_out_of_the_folder(url):
    path = picture_path(canonical_url(url))
    assert len(path) == len("pictures/00/") + 22
    assert set(path.removeprefix("pictures/")) <= set("0123456789abcdef/")
    assert canonical_url(canonical_url(url)) == canonical_url(url)


@pytest.mark.parametrize(
    ("vintage", "fields", "expected"),
    [
        (2018, {"imageURLHighRes": ["http://a.example/big.jpg"], "imageURL": ["http://a.example/s.jpg"]}, "big"),
        (2018, {"imageURLHighRes": [], "imageURL": ["http://a.example/s._SS40_.jpg"]}, "s"),
        (2018, {"image": ["http://a.example/old._SR38,50_.jpg"], "imageURL": None}, "old"),
        (2018, {"imageURL": "http://a.example/text.jpg"}, "text"),
        (
            2023,
            {"images": [{"hi_res": None, "large": "http://a.example/l.jpg", "thumb": "http://a.example/t.jpg"}]},
            "l",
        ),
        (
            2023,
            {
                "images": [
                    {"variant": "PT01", "hi_res": "http://a.example/back.jpg"},
                    {"variant": "MAIN", "hi_res": "http://a.example/main.jpg", "large": "http://a.example/l.jpg"},
                ]
            },
            "main",
        ),
        (2023, {"images": [None, {"hi_res": 3}, {"thumb": "http://a.example/t.jpg"}]}, "t"),
    ],
)
def test_the_largest_picture_is_chosen(tmp_path, vintage, fields, expected):
    given_source = source(tmp_path, vintage, [line(vintage, **fields)])
    assert [p.url for p in read_products("toys", given_source, amazon.Report())] == [f"http://a.example/{expected}.jpg"]


def test_a_picture_is_what_the_log_says(tmp_path):
    urls = {status: f"http://a.example/{i}.jpg" for i, status in enumerate(("ok", "gone", "corrupt", "too large", ""))}
    given_source = source(tmp_path, 2014, [line(2014, f"B{i}", url=url) for i, url in enumerate(urls.values())])
    entries = [{"path": picture_path(url), "status": status} for status, url in urls.items() if status]
    (tmp_path / LOG).write_text('{"path": "to\n' + "".join(json.dumps(entry) + "\n" for entry in entries) + '{"pa')
    (tmp_path / picture_path(urls["ok"])).parent.mkdir(parents=True)
    (tmp_path / picture_path(urls["ok"])).write_bytes(b"pixels")
    raw = load("toys", given_source)
    assert raw.read_image(raw.table["image"][0]) == b"pixels"
    for i, reason in enumerate(("missing", "corrupt", "too large", "missing"), 1):
        with pytest.raises(ImageError) as caught:
            raw.read_image(raw.table["image"][i])
        assert caught.value.reason == reason


# --- files that cannot be used


def test_a_truncated_file_is_not_used_in_part(tmp_path):
    given_source = source(tmp_path, 2014, [line(2014, f"B{i}", f"Mug {i * 7919}") for i in range(5000)])
    data = (tmp_path / "meta.json.gz").read_bytes()
    (tmp_path / "meta.json.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(CatalogueError, match=r"breaks off or is damaged after line \d{3,}.*: fetch it again"):
        load("toys", given_source)
    (tmp_path / "meta.json.gz").write_bytes(data[:5000] + b"\0" * 99 + data[5099:])
    with pytest.raises(CatalogueError, match="breaks off or is damaged after line"):
        load("toys", given_source)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(2018)], r"none of the 1 lines read is a usable product in the syntax of 2014; is `vintage` right"),
        (["<html>", "</html>"], r"none of the 2 lines read .* line not in the syntax of 2014"),
        (["x"] * 5000, r"none of the 1000 lines read"),
        ([], r"none of the 0 lines read"),
    ],
)
def test_another_file_or_vintage_stops_with_one_sentence(tmp_path, lines, message):
    with pytest.raises(CatalogueError, match=message) as caught:
        load("toys", source(tmp_path, 2014, lines))
    assert "\n" not in str(caught.value)


def test_what_is_not_fetched_yet_is_named_with_the_command(tmp_path):
    here = source(tmp_path, 2014, [line(2014)])
    (tmp_path / LOG).unlink()
    with pytest.raises(CatalogueError, match=r"no pictures are fetched; run `python -m icssl_lib\.runs fetch CONFIG`"):
        load("toys", here)
    away = AmazonSource(source="amazon", vintage=2014, meta="http://snap.stanford.edu/m.json.gz", folder=tmp_path)
    with pytest.raises(CatalogueError, match=r"2014-m\.json\.gz: no such metadata file; run `python -m"):
        load("toys", away)


def test_an_unpacked_file_is_read_whatever_its_name(tmp_path):
    given_source = source(tmp_path, 2023, [])
    (tmp_path / "meta.json.gz").write_text(line(2023))
    assert len(load("toys", given_source).table) == 1


# --- configuration


def configured(folder, **amazon_keys):
    keys = {"source": "amazon", "vintage": 2014, "meta": "meta.json.gz", "folder": "amazon"} | amazon_keys
    text = json.dumps({"study": "s", "datasets": {"a": keys}, "text": {"model": "x"}, "vision": {"model": "y"}})
    (folder / "s.yaml").write_text(text)
    return load_config(folder / "s.yaml").datasets["a"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vintag": 2014}, r"vintag: unknown key; did you mean 'vintage'"),
        ({"vintage": 2016}, r"datasets\.a\.amazon\.vintage: Input should be 2014, 2018 or 2023"),
        ({"meta": "ftp://x/meta.json.gz"}, r"expected a path, or an address that begins with http"),
        ({"hosts": ["http://x"]}, r"hosts\.0: String should match pattern"),
        ({"sha256": "abc"}, r"sha256: String should match pattern"),
        ({"connections": 0}, r"connections: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_are_refused_with_what_and_where(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, **keys)


def test_paths_start_at_the_file_and_addresses_stay(tmp_path):
    assert configured(tmp_path).meta == str(tmp_path / "meta.json.gz")
    assert configured(tmp_path).folder == tmp_path / "amazon"
    assert configured(tmp_path, meta="https://x/m.gz").meta == "https://x/m.gz"
    slow = configured(tmp_path, requests_per_second=1, hosts=["x"])
    assert slow.requests_per_second == 1
    assert slow.model_dump() == configured(tmp_path).model_dump()  # how it is fetched is not what it is


def test_the_paper_s_configuration_is_the_paper_s(root):
    study = load_config(root / "config/paper.yaml")
    assert {name: source.vintage for name, source in study.datasets.items()} == dict.fromkeys(
        ("automotive", "beauty", "electronics"), 2014
    )
    assert (study.text.model, study.vision.model, study.vision.image_size) == (
        "bert-base-uncased", "vit_large_patch16_224", 224,
    )  # fmt: skip
    a, f = study.adapt, study.finetune
    assert (a.lr, a.weight_decay, a.temperature, a.alpha, a.epochs, a.batch_size) == (1e-5, 1e-8, 0.1, 0.75, 50, 32)
    assert (f.lr, f.weight_decay, f.epochs, f.batch_size) == (5e-5, 1e-8, 30, 32)
    assert study.seeds == [0, 1, 2]
    assert set(study.methods) == {"origin", "simcse", "convirt", "convirt_shuffled", "tfidf"}
    for source in study.datasets.values():
        assert source.meta.split("/")[2] in source.hosts
