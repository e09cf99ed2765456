"""Fetch an Amazon dataset's metadata file and pictures: within limits, politely, and so that a kill costs nothing.

Addresses come from a file on the web, so they are not trusted: only hosts of an allow-list are asked, at each redirect.
A picture's last line in ``pictures.jsonl`` tells what became of it: ok; gone (404, 410); placeholder (a pixel, or a "no
image" icon); corrupt (no picture by Pillow); too large; refused (another 4xx, or a web page, as a proxy or a bot check
sends); forbidden (outside the allow-list); or failed (no answer, a broken one, 429 or 5xx, after all retries)."""

import json
import threading
import time
from collections import Counter
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path

import httpx
import tenacity
from PIL import Image
from tqdm.auto import tqdm

from icssl_lib.config import AmazonSource
from icssl_lib.files import locked, sha256, written_whole
from icssl_lib.images import FORMATS
from icssl_lib.sources.amazon import LOG, NO_PICTURE, meta_path, picture_path, read_log, read_products
from icssl_lib.sources.raw import CatalogueError, Report

FINAL = ("ok", "gone", "placeholder", "corrupt", "too large")  # not asked for again
OF_HTTP = {404: "gone", 410: "gone"} | dict.fromkeys((206, 408, 416, 425, 429, 500, 502, 503, 504), "failed")
MAX_FILE, MAX_PICTURE = 32 * 2**30, 16 * 2**20  # bytes
TIMEOUT, MAX_WAIT = 30, 120  # seconds: without a byte; between two tries, whatever Retry-After says
MIN_SIDE = 8  # pixels; smaller ones are placeholders
GIVE_UP = 50  # pictures that fail or are refused one after the other: the network is gone, or we are not welcome


class Outcome(Exception):
    """A request that did not end well, and how: a status and a detail. "failed" is worth another try."""


def fetch(name: str, source: AmazonSource, progress: bool = True) -> dict[str, dict]:
    """Fetch what is not there yet of one dataset's metadata and pictures; dead pictures are counted, no error.
    Returns: ``meta`` (file, bytes, sha256) and ``pictures`` (status to count, by name).
    Raises: CatalogueError: no metadata, another sha256, metadata that cannot be read, no way to the pictures."""
    path = meta_path(source)
    source.folder.mkdir(parents=True, exist_ok=True)
    with locked(source.folder / ".lock"), Client(source) as client:  # a second process waits: the limits hold for both
        if "://" in source.meta and not path.is_file():
            fetch_file(client, source.meta, path)
        products = list(read_products(source, Report()))
        if source.sha256 not in (None, found := sha256(path)):
            raise CatalogueError(f"{path}: its sha256 is {found}, `sha256` says {source.sha256}; another version?")
        wanted = {picture_path(product.url): product.url for product in products if product.url}
        counts = fetch_pictures(client, name, wanted, progress)
    meta = {"file": path.name, "bytes": path.stat().st_size, "sha256": found}
    return {"meta": meta, "pictures": dict(sorted(counts.items()))}


class Client(httpx.Client):
    """GET requests within the limits of a source; the rate for one host holds for all hosts together."""

    def __init__(self, source: AmazonSource) -> None:
        headers = {"User-Agent": "icssl (research; one copy per study)", "Accept-Encoding": "identity"}
        super().__init__(headers=headers, timeout=TIMEOUT, event_hooks={"request": [self._admit]})
        self.source = source
        self._turn, self._next = threading.Lock(), 0.0  # when the next request may go, by time.monotonic

    @tenacity.retry(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Outcome) and error.args[0] == "failed"),
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=MAX_WAIT),
        reraise=True,
    )
    def download(self, url: str, path: Path, limit: int, note: Path | None = None) -> None:
        """Write at most ``limit`` bytes to ``path``; with a ``note`` of a file's ETag or date only what ``path`` lacks
        of it, unless it has changed. Raises: Outcome."""
        same = note.read_text() if note and note.is_file() else ""
        had = path.stat().st_size if same and path.is_file() else 0
        headers = {"Range": f"bytes={had}-", "If-Range": same} if had else {}
        try:
            for _ in range(6):  # not httpx's own, which reads what a redirect's answer holds to its end
                with self.stream("GET", url, headers=headers) as response:
                    if response.next_request is None:
                        return self._write(response, path, had, limit, note)
                    url = response.next_request.url
        except (httpx.InvalidURL, httpx.TransportError) as error:
            status = "failed" if isinstance(error, httpx.TransportError) else "forbidden"
            raise Outcome(status, str(error) or type(error).__name__) from None
        raise Outcome("forbidden", "more than 5 redirects")

    def _admit(self, request: httpx.Request) -> None:
        """Refuse what is not of the allow-list, and wait for this thread's turn."""
        url, host = request.url, request.url.netloc.decode()  # with the port if it is not the scheme's
        if url.scheme not in ("http", "https") or url.userinfo or host not in self.source.hosts:
            raise Outcome("forbidden", f"{url.scheme}://{host} is not among `hosts`")
        with self._turn:  # held while waiting: the other threads stand in line
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + 1 / self.source.requests_per_second

    def _write(self, response: httpx.Response, path: Path, had: int, limit: int, note: Path | None) -> None:
        status, headers, chunks = response.status_code, response.headers, response.iter_raw()
        rest = had > 0 and status == 206 and headers.get("content-range", "").startswith(f"bytes {had}-")
        if status != 200 and not rest:
            if status in (206, 416):  # not the rest of what is here: the next try asks for all of it
                path.unlink(missing_ok=True)
            after = headers.get("retry-after", "0")  # seconds, or a date
            seconds = min(float(after) if after.isdecimal() else 1e9, MAX_WAIT)
            with self._turn:  # it is meant for every thread
                self._next = max(self._next, time.monotonic() + seconds)
            raise Outcome(OF_HTTP.get(status, "refused"), f"HTTP {status}")
        if NO_PICTURE.search(response.url.path):
            raise Outcome("placeholder", response.url.path)
        first, kind = next(chunks, b""), headers.get("content-type", "").lower()
        if not rest and (first.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") or kind.startswith("text/html")):
            raise Outcome("refused", "a web page came in its place")  # and does not take the place of gigabytes
        if had * rest + int(headers.get("content-length", 0)) > limit:
            raise Outcome("too large", f"more than {limit} bytes")
        with path.open("ab" if rest else "wb") as file:
            if note and not rest:  # after the old beginning is gone
                note.write_text(headers.get("etag") or headers.get("last-modified", ""))
            for chunk in chain([first], chunks):
                file.write(chunk)
                if file.tell() > limit:
                    raise Outcome("too large", f"more than {limit} bytes")


def fetch_file(client: Client, url: str, target: Path) -> None:
    """Fetch a large file, going on where an earlier call ended if the file is still the same by ETag or date.
    Raises: CatalogueError: not to be had, a web page instead, or larger than MAX_FILE."""
    partial, note = (target.with_name(target.name + end) for end in (".partial", ".partial.validator"))
    try:
        client.download(url, partial, MAX_FILE, note)
    except Outcome as error:
        remedy = "check the network and `meta`; the same command resumes the download"
        raise CatalogueError(f"{url}: {': '.join(error.args)}; {remedy}") from None
    partial.replace(target)
    note.unlink()


def fetch_pictures(client: Client, name: str, wanted: dict[str, str], progress: bool = True) -> Counter[str]:
    """Fetch pictures without a final status, ``wanted`` by path below the folder to address; the count of each status.
    Raises: CatalogueError: GIVE_UP pictures failed in a row."""
    folder, statuses, row = client.source.folder, read_log(client.source.folder), 0
    lost = {path for path in wanted if statuses.get(path) == "ok" and not (folder / path).is_file()}
    todo = [item for item in wanted.items() if item[0] in lost or statuses.get(item[0]) not in FINAL]
    with (folder / LOG).open("a", buffering=1) as log, ThreadPool(client.source.connections) as pool:
        log.write("\n" * (log.tell() > 0))  # ends a line that a kill tore
        entries = pool.imap_unordered(lambda item: fetch_picture(client, *item), todo)
        for entry in tqdm(entries, f"pictures of {name}", len(todo), disable=not progress):
            log.write(json.dumps(entry) + "\n")
            statuses[entry["path"]] = status = entry["status"]
            row = 0 if status in FINAL else row + (status != "forbidden")  # for which nobody was asked
            if row >= GIVE_UP:
                last = f"{entry['url'][:200]}: {status}: {entry['detail']}; check the network"
                raise CatalogueError(f"dataset {name}: {row} pictures in a row failed, the last one {last}")
    return Counter(statuses[path] for path in wanted)


def fetch_picture(client: Client, path: str, url: str) -> dict[str, str]:
    """Fetch one picture to ``path`` below the source's folder; its entry of the log. Raises: OSError."""
    target, status, detail = client.source.folder / path, "ok", ""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_whole(target) as part:
            client.download(url, part, MAX_PICTURE)
            try:
                with Image.open(part, formats=FORMATS) as image:
                    side = min(image.size)
            except Exception as error:  # decoders raise nearly anything on a broken file
                raise Outcome("corrupt", str(error)) from None
            if side < MIN_SIDE:
                raise Outcome("placeholder", f"a side of {side} pixels")
    except Outcome as error:
        status, detail = error.args
    return {"path": path, "status": status, "url": url, "detail": detail[:200]}
