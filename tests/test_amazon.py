"""The three vintages of the Amazon data, each in its own syntax, with what is known to be wrong in them."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import product

from icssl_lib.catalogue import ingest
from icssl_lib.config import AmazonSource, load_config
from icssl_lib.images import ImageError
from icssl_lib.sources.amazon import FIELDS, LOG, MAX_LINE, canonical_url, load, picture_path, read_products
from icssl_lib.sources.raw import CatalogueError, Report

VINTAGES = (2014, 2018, 2023)
SITE = "http://a.example"
ICON = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
LARGE = "https://m.media-amazon.com/images/I/41abc+d+eL.jpg"


def line(vintage: int, *fields, **more) -> str:
    return product(vintage, *fields, **{"url": f"{SITE}/1.jpg"} | more)


def source(folder, vintage: int, lines: list[str | bytes], **options) -> AmazonSource:
    """A local metadata file of these lines, and a log that knows no picture."""
    data = b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in lines)
    (folder / "meta.json.gz").write_bytes(gzip.compress(data))
    (folder / LOG).touch()
    settings = {"source": "amazon", "vintage": vintage, "meta": str(folder / "meta.json.gz"), "folder": folder}
    return AmazonSource(**settings | options)


def dropped(raw) -> dict[str, int]:
    return {reason: count for reason, _, count, _ in raw.report.frame().itertuples(index=False)}


@pytest.mark.parametrize("vintage", VINTAGES)
def test_each_vintage_reads_the_same_products(tmp_path, vintage):
    """Entities are unescaped once, in titles and labels; what lacks a field is dropped and counted with its line."""
    lines = [
        line(vintage),
        line(vintage, "B002", "Salt &amp; Pepper &amp;amp; more &#39;n", ("Home", "Salt &amp; Pepper")),
        *(line(vintage, None), line(vintage, "B004", None), line(vintage, "B005", "  ")),
        *(line(vintage, "B006", path=None), line(vintage, "B007", path=())),
        *(line(vintage, "B008", url=None), line(vintage, "B009", url=ICON), line(vintage, "B010", "x" * MAX_LINE)),
        *("", "no product at all", "[1, 2]"),
        line(vintage, "B001", "Red mug again"),
    ]
    raw = load("toys", source(tmp_path, vintage, lines))
    assert raw.table[["id", "title", "label"]].to_numpy().tolist() == [
        ["B001", "Red mug", "Mugs"],
        ["B002", "Salt & Pepper &amp; more 'n", "Salt & Pepper"],
        ["B001", "Red mug again", "Mugs"],  # ingest drops and counts repeated ids of any source
    ]
    identity, categories, _ = FIELDS[vintage]
    once = [f"no {identity}", f"line of more than {MAX_LINE} bytes"]
    twice = ["no picture named", "no title", f"no {categories}", f"line not in the syntax of {vintage}"]
    assert dropped(raw) == dict.fromkeys(once, 1) | dict.fromkeys(twice, 2)
    assert f"no {categories} (e.g. line 6: {{" in str(raw.report)
    kept = load("toys", source(tmp_path, vintage, lines, missing_image="keep"))
    assert kept.table["id"].tolist() == ["B001", "B002", "B008", "B009", "B001"]
    assert kept.table["image"].tolist()[2:4] == ["", ""]
    with pytest.raises(ImageError, match="picture missing: the product names none"):
        kept.read_image("")


def test_page_source_is_no_title(tmp_path):
    pages = ["\n    var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();", "&lt;!DOCTYPE html&gt;"]
    pages += ["Mug $(function () { return 1; })", '<span id="productTitle" class="a-size-large">Red mug</span>']
    titles = ["Multi function (black) mug", "<3 Hearts mug", "Mug, a < b", "function(" * 50_000, f"&#{'9' * 5000};"]
    lines = [line(2018, f"B{i}", title) for i, title in enumerate(pages + titles)]
    raw = load("toys", source(tmp_path, 2018, lines))
    assert raw.table["title"].tolist() == titles
    assert dropped(raw) == {"page source in place of a title": len(pages)}


def test_a_2014_line_is_read_and_never_run(tmp_path):
    hostile = [
        *(f"{{'asin': __import__('os').system('touch {tmp_path}/run')}}", f"open('{tmp_path}/run', 'w')"),
        *("(" * 50_000, "-" * 100_000 + "1", "{" * 90 + "1" + "}" * 90),
        *("{'asin': f'" + "{x}" * 100_000 + "'}", "{'asin': 9**9**9}", "{'asin': " + "9" * 5000 + "}", "{[]: 1}"),
    ]
    raw = load("toys", source(tmp_path, 2014, [*hostile, line(2014, title="\\d not an escape")]))
    assert len(raw.table) == 1
    assert dropped(raw) == {"line not in the syntax of 2014": len(hostile) - 1, "line of more than 1000 braces": 1}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("vintage", VINTAGES)
def test_texts_that_are_no_unicode(tmp_path, vintage):
    lines = [line(vintage, title="Mug \ud800"), line(vintage, "B002", "Caf\0").encode().replace(b"Caf", b"Caf\xe9")]
    lines.append(line(vintage, "B003", url="http://127.0.0.1/\ud800.jpg"))
    raw = load("toys", source(tmp_path, vintage, lines))
    assert [title[:4] for title in raw.table["title"]] == ["Mug ", "Caf\ufffd", "Red "]
    assert raw.table["image"].str.fullmatch(r"pictures/[0-9a-f]{2}/[0-9a-f]{22}").all()


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://ecx.images-amazon.com/images/I/41abc%2Bd%2BeL._SX300_.jpg", LARGE),
        ("https://images-na.ssl-images-amazon.com/images/I/41abc+d+eL._SX38_SY50_CR,0,0,38,50_.jpg", LARGE),
        ("http://g-ecx.images-amazon.com/images/I/41abc+d+eL._BO2,204,203,200_sticker-v3,TopRight_AA300_.jpg", LARGE),
        ("https://user@m.media-amazon.com/images/I/41abc%2bd+eL._AC_.jpg", LARGE),
        ("http://M.media-amazon.com/images/I/41abc+d+eL.jpg?x=1#y", LARGE),
    ]
    + [(url, url) for url in ("http://127.0.0.1:81/a/b.jpg", "https://m.media-amazon.com.evil.example/a.jpg", "a.jpg")]
    + [(url, url) for url in ("http://evil.example/images-amazon.com/a.jpg", "ftp://m.media-amazon.com/a.jpg", "")]
    + [("http://[::1/a.jpg", "http://[::1/a.jpg")],
)
def test_one_picture_has_one_address(url, canonical):
    assert canonical_url(url) == canonical
    assert (picture_path(canonical_url(url)) == picture_path(LARGE)) == (canonical == LARGE)


@given(st.text(max_size=60) | st.builds("http://m.media-amazon.com/{}".format, st.text(max_size=60)))
def test_no_address_leads_out_of_the_folder(url):
    path = picture_path(canonical_url(url))
    assert len(path) == len("pictures/00/") + 22
    assert set(path.removeprefix("pictures/")) <= set("0123456789abcdef/")
    assert canonical_url(canonical_url(url)) == canonical_url(url)


@pytest.mark.parametrize(
    ("vintage", "fields", "expected"),
    [
        (2014, {"categories": [["Home"], ["Sport", "Hiking", "Mugs"], ["Home", "Kitchen", "Cups"]]}, "Mugs"),
        (2014, {"categories": [["Home", "Mugs"], ["Home", "Kitchen", "Cups"]]}, "Cups"),
        (2014, {"categories": [[], ["Home", ""]]}, "Home"),
        (2018, {"category": ["Home", "Mugs", "</span></span></span>"]}, "Mugs"),
        (2018, {"imageURLHighRes": [f"{SITE}/big.jpg"], "imageURL": [f"{SITE}/s.jpg"]}, "big"),
        (2018, {"imageURLHighRes": [], "imageURL": [f"{SITE}/s._SS40_.jpg"]}, "s"),
        (2018, {"image": [f"{SITE}/old._SR38,50_.jpg"], "imageURL": None}, "old"),
        (2023, {"images": [{"hi_res": None, "large": f"{SITE}/l.jpg", "thumb": f"{SITE}/t.jpg"}]}, "l"),
        (2023, {"images": [{"hi_res": f"{SITE}/b.jpg"}, {"variant": "MAIN", "hi_res": f"{SITE}/main.jpg"}]}, "main"),
        (2023, {"images": [None, {"hi_res": 3}, {"thumb": f"{SITE}/t.jpg"}]}, "t"),
    ],
)
def test_the_leaf_of_the_first_deepest_path_and_the_largest_picture_are_chosen(tmp_path, vintage, fields, expected):
    (found,) = read_products(source(tmp_path, vintage, [line(vintage, **fields)]), Report())
    assert expected in (found.label, found.url.removeprefix(f"{SITE}/").removesuffix(".jpg"))


def test_a_picture_is_what_the_log_says(tmp_path):
    expected = {"ok": "", "gone": "missing", "corrupt": "corrupt", "too large": "too large", "unknown": "missing"}
    paths = {status: picture_path(f"{SITE}/{status}.jpg") for status in expected}
    entries = [json.dumps({"path": path, "status": status}) for status, path in paths.items() if status != "unknown"]
    given_source = source(tmp_path, 2014, [line(2014)])
    (tmp_path / LOG).write_text("\n".join(['{"path": "to', *entries, '{"pa']))
    (tmp_path / paths["ok"]).parent.mkdir(parents=True)
    (tmp_path / paths.pop("ok")).write_bytes(b"pixels")
    read_image = load("toys", given_source).read_image
    assert read_image(picture_path(f"{SITE}/ok.jpg")) == b"pixels"
    for status, path in paths.items():
        with pytest.raises(ImageError, match=f"picture {expected[status]}"):
            read_image(path)


def test_a_damaged_file_is_not_used_in_part_and_an_unpacked_one_is_read(tmp_path):
    given_source = source(tmp_path, 2014, [line(2014, f"B{i}", f"Mug {i * 7919}") for i in range(5000)])
    data = (tmp_path / "meta.json.gz").read_bytes()
    for damaged in (data[: len(data) // 2], data[:5000] + b"\0" * 99 + data[5099:]):
        (tmp_path / "meta.json.gz").write_bytes(damaged)
        with pytest.raises(CatalogueError, match=r"damaged after line \d+ .*; delete it and run `python -m"):
            load("toys", given_source)
    (tmp_path / "meta.json.gz").write_text(line(2014))  # browsers unpack and leave the name
    assert len(load("toys", given_source).table) == 1


@pytest.mark.parametrize(("lines", "why"), [([line(2018)], "1 dropped: no categories"), ([], "")])
def test_another_file_or_vintage_stops_with_one_sentence(tmp_path, lines, why):
    with pytest.raises(CatalogueError, match=rf"dataset toys: 0 products .* are left; .* \(0 rows; {why}") as caught:
        ingest("toys", source(tmp_path, 2014, lines), 16, 0, tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)


def test_what_is_not_fetched_yet_is_named_with_the_command(tmp_path):
    here = source(tmp_path, 2014, [line(2014)])
    (tmp_path / LOG).unlink()
    with pytest.raises(CatalogueError, match=r"no pictures are fetched; run `python -m icssl_lib\.runs fetch CONFIG`"):
        load("toys", here)
    away = here.model_copy(update={"meta": "http://snap.stanford.edu/m.json.gz"})
    with pytest.raises(CatalogueError, match=r"2014-m\.json\.gz: no such metadata file; run `python -m"):
        load("toys", away)


def test_paths_start_at_the_file_and_how_it_is_fetched_is_not_what_a_dataset_is(tmp_path):
    def configured(**more) -> AmazonSource:
        keys = {"source": "amazon", "vintage": 2014, "meta": "m.gz", "folder": "data"} | more
        text = json.dumps({"study": "s", "datasets": {"a": keys}, "text": {"model": "x"}, "vision": {"model": "y"}})
        (tmp_path / "s.yaml").write_text(text)
        return load_config(tmp_path / "s.yaml").datasets["a"]

    assert (configured().meta, configured().folder) == (str(tmp_path / "m.gz"), tmp_path / "data")
    assert configured(meta="https://x/m.gz").meta == "https://x/m.gz"
    assert configured(requests_per_second=1, hosts=["x"]).model_dump() == configured().model_dump()


def test_the_paper_s_genres_are_those_of_2014_and_may_be_fetched(root):
    datasets = load_config(root / "config/paper.yaml").datasets
    assert list(datasets) == ["automotive", "beauty", "electronics"]
    assert all(source.vintage == 2014 and source.meta.split("/")[2] in source.hosts for source in datasets.values())
