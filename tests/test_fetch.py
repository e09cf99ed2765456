"""Fetching against a server on 127.0.0.1 that does what servers do."""

import email.utils
import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx
import loopback
import pytest
import yaml
from loopback import endless, file, picture, redirect, serving, truncated

from icssl_lib import fetch as fetching
from icssl_lib.config import AmazonSource
from icssl_lib.fetch import Client, FetchError, fetch, fetch_file, fetch_pictures
from icssl_lib.sources.amazon import LOG, picture_path, read_log

JPEG = picture()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with serving() as running:
        yield running


def source(server, folder: Path, **options) -> AmazonSource:
    settings = {"source": "amazon", "vintage": 2023, "meta": f"{server.url}/meta_Toys.jsonl", "folder": folder}
    limits = {"requests_per_second": 1000, "timeout": 2, "retries": 2, "max_wait": 0.05, "max_picture_bytes": 50_000}
    return AmazonSource(**settings | {"hosts": [server.host]} | limits | options)


def fetch_all(server, folder: Path, urls: list[str], **options) -> dict[str, str]:
    """Fetch pictures by address; the status of each."""
    wanted = {picture_path(url): url for url in urls}
    folder.mkdir(exist_ok=True)
    with Client(source(server, folder, **options)) as client:
        fetch_pictures(client, "toys", wanted, progress=False)
    statuses = read_log(folder)
    return {url: statuses[path] for path, url in wanted.items()}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 99) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + data


# --- pictures


def test_each_picture_gets_the_status_it_deserves(server, tmp_path):
    """What a header says counts for nothing; what is forbidden is never asked for."""
    with serving() as stranger:
        stranger.answers["/a.jpg"] = JPEG
        cases = {
            "/fine.jpg": (JPEG, "ok"),
            "/typed-as-text.jpg": (lambda r: r.reply(200, JPEG, Content_Type="text/html"), "ok"),
            "/moved.jpg": (redirect("/fine.jpg"), "ok"),
            "/truncated-once.jpg": ([truncated(JPEG), JPEG], "ok"),
            "/busy-once.jpg": ([503, JPEG], "ok"),
            "/absent.jpg": (404, "gone"),
            "/removed.jpg": (410, "gone"),
            "/private.jpg": (403, "refused"),
            "/page.jpg": (lambda r: r.reply(200, b"<html>Robot?</html>", Content_Type="image/jpeg"), "refused"),
            "/marked-page.jpg": (b"\xef\xbb\xbf\r\n <!DOCTYPE html>", "refused"),
            "/text-page.jpg": (lambda r: r.reply(200, b"Robot?", Content_Type="Text/HTML; charset=utf-8"), "refused"),
            "/long-page.jpg": (b"<html>" + bytes(60_000), "refused"),
            "/xml-error.jpg": (lambda r: r.reply(200, b"<?xml?><Error/>", Content_Type="application/xml"), "refused"),
            "/drawing.svg": (lambda r: r.reply(200, b"<!-- a --><svg/>", Content_Type="image/svg+xml"), "corrupt"),
            "/drawing.jpg": (lambda r: r.reply(200, b"<?xml?><svg/>", Content_Type="image/jpeg"), "corrupt"),
            "/empty.jpg": (b"", "corrupt"),
            "/postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "corrupt"),
            "/pixel.gif": (picture(side=1, kind="GIF"), "placeholder"),
            "/none.jpg": (redirect("/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"), "placeholder"),
            "/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif": (JPEG, "placeholder"),
            "/endless.jpg": (endless, "too large"),
            "/bomb.png": (png_header(60_000, 60_000), "too large"),
            "/elsewhere.jpg": (redirect(f"{stranger.url}/a.jpg"), "forbidden"),
            "/file.jpg": (redirect("file:///etc/passwd"), "forbidden"),
            "/round.jpg": (redirect("/round.jpg"), "forbidden"),
            "/broken.jpg": (500, "failed"),
            "/truncated.jpg": (truncated(JPEG), "failed"),
        }
        server.answers = {path: answer for path, (answer, _) in cases.items()}
        expected = {server.url + path: status for path, (_, status) in cases.items()}
        never = [
            *(f"{stranger.url}/a.jpg", "file:///etc/passwd", "ftp://127.0.0.1/b.jpg", "http://[::1/a.jpg", "a.jpg"),
            *(server.url.replace("//", "//user@") + "/fine.jpg", "http://127.0.0.1/a.jpg", ""),
        ]
        expected |= dict.fromkeys(never, "forbidden")
        assert fetch_all(server, tmp_path, list(expected)) == expected
        assert stranger.asked == []

    assert server.sent < 20_000_000  # what buffers hold, not what was on offer
    assert server.paths().count("/broken.jpg") == server.paths().count("/truncated.jpg") == 3
    assert server.paths().count("/absent.jpg") == 1
    stored = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "pictures").rglob("*") if path.is_file()}
    assert stored == {picture_path(url) for url, status in expected.items() if status == "ok"}
    for entry in map(json.loads, (tmp_path / LOG).read_text().splitlines()):
        if entry["status"] == "ok":
            assert (tmp_path / entry["path"]).read_bytes() == JPEG
            assert entry["sha256"] == hashlib.sha256(JPEG).hexdigest()
            assert entry["bytes"] == len(JPEG)


def test_only_what_may_have_changed_is_asked_again(server, tmp_path):
    server.answers = {
        "/ok.jpg": JPEG,
        "/script.jpg": b"%!PS",
        "/page.jpg": b"<html>",
        "/private.jpg": 403,
        "/broken.jpg": 500,
        "/lost.jpg": JPEG,
    }
    urls = [server.url + path for path in [*server.answers, "/gone.jpg"]]
    fetch_all(server, tmp_path, urls)
    (tmp_path / picture_path(f"{server.url}/lost.jpg")).unlink()
    with (tmp_path / LOG).open("a") as log:
        log.write('{"path": "pictures/00/torn", "sta')
    server.asked.clear()
    server.answers |= {"/page.jpg": JPEG, "/private.jpg": JPEG, "/broken.jpg": JPEG}
    status = fetch_all(server, tmp_path, urls)
    assert sorted(server.paths()) == ["/broken.jpg", "/lost.jpg", "/page.jpg", "/private.jpg"]
    assert list(status.values()) == ["ok", "corrupt", "ok", "ok", "ok", "ok", "gone"]
    lines = (tmp_path / LOG).read_text().splitlines()
    assert lines[-5].endswith('"sta')  # closed, and four whole lines after it
    assert {json.loads(line)["status"] for line in lines[-4:]} == {"ok"}


def test_a_proxy_that_answers_all_with_a_page_stops_the_fetch_and_loses_no_picture(server, tmp_path, monkeypatch):
    """Such as a filter, or a bot check: status 200 and a page for each picture. Once let in, all are there."""
    monkeypatch.setattr(fetching, "GIVE_UP", 5)
    server.answers = dict.fromkeys((f"/{i}.jpg" for i in range(400)), b"<html>Are you a robot?</html>")
    urls = [server.url + path for path in server.answers]
    with pytest.raises(FetchError, match=r"toys: 5 pictures in a row .* refused: a web page .* does the host let us"):
        fetch_all(server, tmp_path, urls, connections=2)
    assert len(server.paths()) < 30
    server.answers |= dict.fromkeys(server.answers, JPEG)
    assert set(fetch_all(server, tmp_path, urls).values()) == {"ok"}


def test_a_host_that_asks_for_a_pause_gets_it_from_all(server, tmp_path):
    """Retry-After holds for every request to the host, and is capped by max_wait."""
    busy = [lambda r: r.reply(429, Retry_After="3600"), JPEG]
    server.answers = {"/0.jpg": busy} | {f"/{i}.jpg": JPEG for i in range(1, 6)}
    began = time.monotonic()
    status = fetch_all(server, tmp_path, [f"{server.url}/{i}.jpg" for i in range(6)], connections=1, max_wait=0.4)
    assert set(status.values()) == {"ok"}
    assert len(server.asked) == 7
    assert server.asked[1][2] - server.asked[0][2] >= 0.4
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("soon", 0), ("-1", 0), ("", 0)])
def test_retry_after_is_seconds(header, seconds):
    assert fetching._retry_after(httpx.Response(429, headers={"Retry-After": header})) == seconds


def test_retry_after_is_a_date():
    header = email.utils.formatdate(time.time() + 3600)
    assert 3000 <= fetching._retry_after(httpx.Response(429, headers={"Retry-After": header})) <= 3600


def test_no_host_is_asked_more_than_allowed(server, tmp_path):
    def slow(request):
        time.sleep(0.05)
        request.reply(200, JPEG)

    server.answers = {f"/{i}.jpg": slow for i in range(24)}
    urls = [server.url + path for path in server.answers]
    fetch_all(server, tmp_path / "a", urls, connections=3)
    assert server.most_at_once == 3
    server.asked.clear()
    fetch_all(server, tmp_path / "b", urls[:10], connections=8, requests_per_second=25)
    times = sorted(when for _, _, when in server.asked)
    assert times[-1] - times[0] >= 9 / 25 - 0.05


def test_without_a_network_one_sentence_and_soon(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "GIVE_UP", 5)
    server.answers = dict.fromkeys((f"/{i}.jpg" for i in range(400)), 500)
    with pytest.raises(FetchError, match=r"toys: 5 pictures in a row .* HTTP 500; is there a network"):
        fetch_all(server, tmp_path, [server.url + path for path in server.answers], connections=2)
    assert len(set(server.paths())) < 30
    with pytest.raises(FetchError, match=r"none of 1 pictures could be fetched, .* is not among `hosts`"):
        fetch_all(server, tmp_path, ["http://elsewhere.example/a.jpg"])
    assert set(fetch_all(server, tmp_path, [f"{server.url}/dead.jpg"]).values()) == {"gone"}  # no error by itself


def test_a_full_disk_stops_with_a_clear_error_and_nothing_half_written(server, tmp_path, monkeypatch):
    server.answers = {"/a.jpg": JPEG, "/meta_Toys.jsonl": line(f"{server.url}/a.jpg")}
    write = Path.write_bytes

    def full(path, data):
        write(path, data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(FetchError, match="No space left on device; free some disk"):
            fetch("toys", source(server, tmp_path), progress=False)
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert fetch("toys", source(server, tmp_path), progress=False)["pictures"] == {"ok": 1}


# --- the metadata file


def line(url: str, i: int = 0) -> bytes:
    product = {"parent_asin": f"B{i:03}", "title": f"Toy {i}", "categories": ["Toys", f"Kind {i % 2}"]}
    return json.dumps(product | {"images": [{"large": url, "hi_res": None}]}).encode() + b"\n"


def fetched(server, folder: Path, **options) -> bytes:
    folder.mkdir(exist_ok=True)
    with Client(source(server, folder, **options)) as client:
        fetch_file(client, f"{server.url}/meta", folder / "meta", progress=False)
    assert [path.name for path in folder.iterdir()] == ["meta"]
    return (folder / "meta").read_bytes()


BODY = bytes(range(256)) * 400


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.answers["/meta"] = file(BODY, '"v1"', cut=30_000)
    assert fetched(server, tmp_path / "a") == BODY  # each try brings 30,000 bytes, so no retry is used up
    ranges = [headers.get("Range") for _, headers, _ in server.asked]
    assert ranges == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]
    assert server.asked[1][1]["If-Range"] == '"v1"'


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    other = BODY[::-1] + b"more"
    server.answers["/meta"] = [file(BODY, '"v1"', cut=30_000), file(other, '"v2"')]
    assert fetched(server, tmp_path) == other


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (403, "refused: HTTP 403; what came already stays, the same command goes on from there"),
        (404, "refused: HTTP 404; what came already stays"),
        (redirect("http://login.example/"), "http://login.example is not among `hosts`; what came already stays"),
        (b"<html>Sign in", "a web page came in place of the file; what came already stays"),
        (redirect("/login"), "a web page came in place of the file; what came already stays"),
    ],
)
@pytest.mark.parametrize("changed", [False, True])
def test_a_refusal_on_the_way_costs_nothing_of_what_came(server, tmp_path, answer, message, changed):
    """Gigabytes may be here. The same command goes on from there, unless the file has changed meanwhile."""
    server.answers = {"/meta": [file(BODY, '"v1"', cut=30_000), answer], "/login": b" <!DOCTYPE html>"}
    with pytest.raises(FetchError, match=message):
        fetched(server, tmp_path)
    assert (tmp_path / "meta.partial").read_bytes() == BODY[:30_000]
    server.asked.clear()
    other = BODY[::-1] + b"more"
    server.answers["/meta"] = file(other, '"v2"') if changed else file(BODY, '"v1"')
    assert fetched(server, tmp_path) == (other if changed else BODY)
    assert [headers["Range"] for _, headers, _ in server.asked] == ["bytes=30000-"]


def test_a_file_that_grew_past_the_limit_leaves_nothing(server, tmp_path):
    server.answers["/meta"] = [file(BODY, '"v1"', cut=30_000), file(BODY * 2, '"v2"')]
    with pytest.raises(FetchError, match=r"too large: 204800 bytes, `max_file_bytes` is 150000; set `meta`"):
        fetched(server, tmp_path, max_file_bytes=150_000)
    assert not (tmp_path / "meta.partial").exists()


@pytest.mark.parametrize(("held", "asked"), [(len(BODY), 1), (len(BODY) + 5, 2)])
def test_a_kill_before_the_new_name(server, tmp_path, held, asked):
    """All bytes are there: nothing is sent again. More than all: it starts over."""
    (tmp_path / "meta.partial").write_bytes((BODY + b"12345")[:held])
    (tmp_path / "meta.partial.json").write_text(json.dumps({"url": f"{server.url}/meta", "validator": '"v1"'}))
    server.answers["/meta"] = file(BODY, '"v1"')
    assert fetched(server, tmp_path) == BODY
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (404, "/meta: refused: HTTP 404; set `meta` to another address"),
        (500, "/meta: cannot be fetched: HTTP 500; is there a network"),
        (b" <!DOCTYPE html><html>Sign in", "/meta: a web page came in place of the file"),
        (endless, "/meta: too large: more than `max_file_bytes`"),
        (lambda r: r.reply(200, b"", length=10**15), "/meta: too large: 1000000000000000 bytes"),
        (lambda r: r.reply(200, b"x", length=10**8), "/meta: cannot be fetched: "),
        (redirect("http://elsewhere.example/meta"), "http://elsewhere.example is not among `hosts`"),
        (BODY, f"its sha256 is {hashlib.sha256(BODY).hexdigest()}, `sha256` says 0000"),
    ],
)
def test_a_file_that_cannot_be_had_stops_with_one_sentence(server, tmp_path, answer, message):
    server.answers["/meta"] = answer
    with pytest.raises(FetchError, match=message) as caught:
        fetched(server, tmp_path, max_file_bytes=10**9 if answer != endless else 10**6, sha256="0" * 64, retries=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "meta").exists()


def test_nobody_there(tmp_path):
    with serving() as server:
        pass  # its port is closed now
    with pytest.raises(FetchError, match=r"cannot be fetched: .*; is there a network"):
        fetched(server, tmp_path)


# --- the command


def test_killed_at_any_moment_the_same_command_goes_on(server, tmp_path):
    """kill -9 in the middle: pictures that were logged are not asked for again, the result is the undisturbed one."""

    def slow(request):
        time.sleep(0.02)
        request.reply(200, JPEG)

    urls = [f"{server.url}/{i}.jpg" for i in range(60)]
    server.answers = {f"/{i}.jpg": slow for i in range(59)} | {"/meta_Toys.jsonl": b"".join(map(line, urls, range(60)))}
    toys = source(server, tmp_path / "toys", connections=2).model_dump(mode="json")
    toys |= {"hosts": [server.host], "connections": 2, "requests_per_second": 1000, "retries": 0}
    config = {"study": "s", "datasets": {"toys": toys}, "text": {"model": "x"}, "vision": {"model": "y"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "icssl_lib.runs",
        "fetch",
        str(tmp_path / "s.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.asked) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    asked = server.paths()
    done = {url for url in urls if (tmp_path / "toys" / picture_path(url)).is_file()}
    assert 5 < len(done) < 59
    subprocess.run(command, check=True, capture_output=True)
    again = server.paths()[len(asked) :]
    assert "/meta_Toys.jsonl" not in again
    assert len(again) <= 60 - len(done) + 2  # 2: stored, and killed before it was logged
    counted = json.loads((tmp_path / "out/catalogues/toys/fetched.json").read_text())
    assert counted["pictures"] == {"gone": 1, "ok": 59}
    meta = server.answers["/meta_Toys.jsonl"]
    expected = {"file": "2023-meta_Toys.jsonl", "bytes": len(meta), "sha256": hashlib.sha256(meta).hexdigest()}
    assert counted["meta"] == expected
    assert loopback.picture() == (tmp_path / "toys" / picture_path(urls[0])).read_bytes()
