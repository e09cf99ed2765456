"""Fetching against a server on 127.0.0.1 that does what servers do."""

import email.utils
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
import tenacity
from loopback import endless, file, picture, product, redirect, serving, truncated

from icssl_lib.config import AmazonSource
from icssl_lib.sources import fetch as fetching
from icssl_lib.sources.amazon import LOG, picture_path, read_log
from icssl_lib.sources.fetch import Client, fetch, fetch_file, fetch_pictures
from icssl_lib.sources.raw import CatalogueError

JPEG = picture()
BODY = bytes(range(256)) * 400


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {"TIMEOUT": 2, "MAX_WAIT": 0.05, "MAX_PICTURE": 50_000, "MAX_FILE": 10**6}.items():
        monkeypatch.setattr(fetching, name, value)
    for name, value in {"stop": tenacity.stop_after_attempt(3), "wait": tenacity.wait_none()}.items():
        monkeypatch.setattr(Client.download.retry, name, value)
    with serving() as running:
        yield running


def source(server, folder: Path, **options) -> AmazonSource:
    settings = {"source": "amazon", "vintage": 2023, "meta": f"{server.url}/meta.jsonl", "folder": folder}
    return AmazonSource(**settings | {"hosts": [server.host], "requests_per_second": 1000} | options)


def fetch_all(server, folder: Path, paths: list[str], **options) -> dict[str, str]:
    """Fetch pictures by path or address; the status of each."""
    wanted = {picture_path(url): url for url in (server.url + path if path[:1] == "/" else path for path in paths)}
    folder.mkdir(exist_ok=True)
    with Client(source(server, folder, **options)) as client:
        fetch_pictures(client, "toys", wanted, progress=False)
    return dict(zip(paths, map(read_log(folder).get, wanted), strict=True))


def test_each_picture_gets_the_status_it_deserves(server, tmp_path):
    """What is forbidden is never asked for, and a web page is no picture whatever it is called."""
    icon = "/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
    with serving() as stranger:
        answers = {
            "ok": [JPEG, redirect("/ok0"), [truncated(JPEG), JPEG], [503, JPEG]],
            "gone": [404, 410],
            "refused": [403, b"\xef\xbb\xbf\r\n <!DOCTYPE html>", b"<html>" + bytes(60_000)],
            "corrupt": [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
            "placeholder": [picture(side=1, kind="GIF"), redirect(icon)],
            "too large": [endless, JPEG + bytes(60_000)],
            "forbidden": [redirect(f"{stranger.url}/a.jpg"), redirect("file:///etc/passwd"), redirect("/forbidden2")],
            "failed": [500, truncated(JPEG)],
        }
        as_image, as_page = {"Content_Type": "image/jpeg"}, {"Content_Type": "Text/HTML; charset=utf-8"}
        answers["refused"] += [lambda r: r.reply(200, b"<p>", **as_image), lambda r: r.reply(200, b"?", **as_page)]
        named = {f"/{status}{i}": answer for status, all_ in answers.items() for i, answer in enumerate(all_)}
        server.answers = {path.replace(" ", "%20"): answer for path, answer in named.items()} | {icon: JPEG}
        expected = {path: path[1:-1] for path in named}
        never = [f"{stranger.url}/a.jpg", "http://127.0.0.1/a.jpg", server.url.replace("//", "//user@") + "/ok0"]
        never += ["file:///etc/passwd", "ftp://127.0.0.1/b.jpg", "http://[::1/a.jpg", "a.jpg", ""]
        expected |= dict.fromkeys(never, "forbidden")
        assert fetch_all(server, tmp_path, list(expected)) == expected
        assert stranger.asked == []
    assert server.sent < 20_000_000  # what buffers hold, not what was on offer
    assert server.paths().count("/failed0") == server.paths().count("/failed1") == 3
    assert server.paths().count("/gone0") == 1
    stored = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "pictures").rglob("*") if path.is_file()}
    assert stored == {picture_path(server.url + path) for path, status in expected.items() if status == "ok"}
    assert {(tmp_path / path).read_bytes() for path in stored} == {JPEG}


def test_only_what_may_have_changed_is_asked_again(server, tmp_path):
    server.answers = dict.fromkeys(["/ok.jpg", "/lost.jpg"], JPEG) | {"/script.jpg": b"%!PS", "/page.jpg": b"<html>"}
    server.answers |= {"/private.jpg": 403, "/broken.jpg": 500, "/gone.jpg": 404}
    paths = list(server.answers)
    fetch_all(server, tmp_path, paths)
    (tmp_path / picture_path(f"{server.url}/lost.jpg")).unlink()
    with (tmp_path / LOG).open("a") as log:
        log.write('{"path": "pictures/00/torn", "sta')  # by a kill
    server.asked.clear()
    server.answers |= dict.fromkeys(["/page.jpg", "/private.jpg", "/broken.jpg"], JPEG)
    status = fetch_all(server, tmp_path, paths)
    assert sorted(server.paths()) == ["/broken.jpg", "/lost.jpg", "/page.jpg", "/private.jpg"]
    assert status == dict.fromkeys(paths, "ok") | {"/script.jpg": "corrupt", "/gone.jpg": "gone"}


@pytest.mark.parametrize(("answer", "why"), [(b"<html>Robot?", "refused: a web"), (500, "failed: HTTP 500; check")])
def test_a_row_of_failures_stops_the_fetch_and_loses_no_picture(server, tmp_path, monkeypatch, answer, why):
    """No network, a filter, or a bot check with status 200 and a page for each picture. Once let in, all are there."""
    monkeypatch.setattr(fetching, "GIVE_UP", 5)
    paths = [f"/{i}.jpg" for i in range(400)]
    server.answers = dict.fromkeys(paths, answer)
    with pytest.raises(CatalogueError, match=rf"toys: 5 pictures in a row failed, .* {why}"):
        fetch_all(server, tmp_path, paths, connections=2)
    assert len(set(server.paths())) < 30
    assert fetch_all(server, tmp_path, ["/dead.jpg"]) == {"/dead.jpg": "gone"}  # no error by itself
    server.answers = dict.fromkeys(paths, JPEG)
    assert set(fetch_all(server, tmp_path, paths).values()) == {"ok"}


@pytest.mark.parametrize("after", ["3600", email.utils.formatdate(time.time() + 3600)], ids=["seconds", "date"])
def test_a_host_that_asks_for_a_pause_gets_it_from_all(server, tmp_path, monkeypatch, after):
    """Retry-After holds for every request, and is capped by MAX_WAIT."""
    monkeypatch.setattr(fetching, "MAX_WAIT", 0.4)
    paths = [f"/{i}.jpg" for i in range(6)]
    server.answers = dict.fromkeys(paths, JPEG) | {"/0.jpg": [lambda r: r.reply(429, Retry_After=after), JPEG]}
    assert set(fetch_all(server, tmp_path, paths, connections=1).values()) == {"ok"}
    first, second, *others = (when for _, _, when in server.asked)
    assert len(others) == 5
    assert 0.4 <= second - first < others[-1] - first < 5


def test_no_host_is_asked_more_than_allowed(server, tmp_path):
    paths = [f"/{i}.jpg" for i in range(24)]
    server.answers = dict.fromkeys(paths, lambda request: time.sleep(0.05) or request.reply(200, JPEG))
    fetch_all(server, tmp_path / "a", paths, connections=3)
    assert server.most_at_once == 3
    server.asked.clear()
    fetch_all(server, tmp_path / "b", paths[:10], connections=8, requests_per_second=25)
    times = sorted(when for _, _, when in server.asked)
    assert times[-1] - times[0] >= 9 / 25 - 0.05


def test_a_full_disk_leaves_nothing_half_written(server, tmp_path, monkeypatch):
    server.answers["/a.jpg"] = JPEG
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left on device"):
            fetch_all(server, tmp_path, ["/a.jpg"])
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]
    assert fetch_all(server, tmp_path, ["/a.jpg"]) == {"/a.jpg": "ok"}


def fetched(server, folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    with Client(source(server, folder)) as client:
        fetch_file(client, f"{server.url}/meta", folder / "meta")
    assert [path.name for path in folder.iterdir()] == ["meta"]
    return (folder / "meta").read_bytes()


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.answers["/meta"] = file(BODY, '"v1"', cut=40_000)
    assert fetched(server, tmp_path) == BODY
    assert [headers.get("Range") for _, headers, _ in server.asked] == [None, "bytes=40000-", "bytes=80000-"]
    assert server.asked[1][1]["If-Range"] == '"v1"'
    (tmp_path / "meta").rename(tmp_path / "meta.partial")  # more than all is here: it starts over
    (tmp_path / "meta.partial.validator").write_text('"v2"')
    server.answers["/meta"] = file(BODY[1:], '"v2"')
    assert fetched(server, tmp_path) == BODY[1:]


@pytest.mark.parametrize("now", [BODY, BODY[::-1] + b"more"])
@pytest.mark.parametrize("answer", [403, redirect("http://login.example/"), b"<html>"])
def test_a_refusal_on_the_way_costs_nothing_of_what_came(server, tmp_path, answer, now):
    """Gigabytes may be here. The same command goes on from there, unless the file has changed meanwhile."""
    server.answers = {"/meta": [file(BODY, '"v1"', cut=30_000), answer]}
    with pytest.raises(CatalogueError, match=r"(HTTP 403|`hosts`|a web page).* the same command resumes"):
        fetched(server, tmp_path)
    assert (tmp_path / "meta.partial").read_bytes() == BODY[:30_000]
    server.asked.clear()
    server.answers["/meta"] = file(now, '"v1"' if now == BODY else '"v2"')
    assert fetched(server, tmp_path) == now
    assert [headers["Range"] for _, headers, _ in server.asked] == ["bytes=30000-"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (endless, "/meta: too large: more than 1000000 bytes"),
        (lambda r: r.reply(200, b"x", length=10**15), "/meta: too large: more than 1000000 bytes"),
        (lambda r: r.reply(200, b"x", length=10**5), "/meta: failed: peer closed connection .*; check the network"),
    ],
)
def test_a_file_that_cannot_be_had_stops_with_one_sentence(server, tmp_path, answer, message):
    server.answers["/meta"] = answer
    with pytest.raises(CatalogueError, match=message) as caught:
        fetched(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "meta").exists()
    with pytest.raises(CatalogueError, match=r"^ftp://x/m: forbidden: ftp://x is not among `hosts`"):
        fetch("toys", source(server, tmp_path, meta="ftp://x/m"))


def toys(server, n: int) -> bytes:
    """A server of ``n`` products and their pictures, the last one gone; the metadata."""
    lines = [product(2023, f"B{i}", f"Toy {i}", url=f"{server.url}/{i}.jpg") for i in range(n)]
    server.answers = {f"/{i}.jpg": lambda r: time.sleep(0.02) or r.reply(200, JPEG) for i in range(n - 1)}
    server.answers["/meta.jsonl"] = "\n".join(lines).encode()
    return server.answers["/meta.jsonl"]


def test_two_at_once_in_one_folder_ask_for_each_thing_once(server, tmp_path):
    meta = toys(server, 20)
    expected = {"file": "2023-meta.jsonl", "bytes": len(meta), "sha256": hashlib.sha256(meta).hexdigest()}
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: fetch("toys", source(server, tmp_path), progress=False), range(2)))
    assert both == [{"meta": expected, "pictures": {"gone": 1, "ok": 19}}] * 2
    assert sorted(server.paths()) == sorted([*server.answers, "/19.jpg"])
    with pytest.raises(CatalogueError, match=f"its sha256 is {expected['sha256']}, `sha256` says 0000"):
        fetch("toys", source(server, tmp_path, sha256="0" * 64), progress=False)


def test_killed_at_any_moment_the_same_command_goes_on(server, tmp_path):
    """kill -9 in the middle: pictures that were logged are not asked for again, the result is the undisturbed one."""
    toys(server, 60)
    keys = source(server, tmp_path / "toys").model_dump(mode="json") | {"hosts": [server.host], "connections": 2}
    config = {"study": "s", "datasets": {"toys": keys}, "text": {"model": "x"}, "vision": {"model": "y"}}
    (tmp_path / "s.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "icssl_lib.runs", "fetch", f"{tmp_path}/s.yaml", "--out", f"{tmp_path}/out"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while len(server.asked) < 20 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    asked = len(server.asked)
    done = [i for i in range(60) if (tmp_path / "toys" / picture_path(f"{server.url}/{i}.jpg")).is_file()]
    assert 5 < len(done) < 59
    subprocess.run(command, check=True, capture_output=True)
    again = server.paths()[asked:]
    assert "/meta.jsonl" not in again
    assert len(again) <= 60 - len(done) + 2  # 2: stored, and killed before it was logged
    counted = json.loads((tmp_path / "out/catalogues/toys/fetched.json").read_text())
    assert counted["pictures"] == {"gone": 1, "ok": 59}
