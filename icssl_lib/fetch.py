"""Fetch an Amazon dataset's metadata file and pictures: within limits, politely, and so that a kill costs nothing.

Addresses come from a file on the web, so they are not trusted: http and https only, hosts of an allow-list only, each
redirect checked anew, sizes cut at a limit, and what arrives is a picture if Pillow says so, whatever its header says.

A picture's status goes to ``pictures.jsonl``, one line each, appended after the picture is in place:

===========  =============================================================================  ================
status       meaning                                                                        the next time
===========  =============================================================================  ================
ok           stored                                                                         skipped
gone         404 or 410                                                                     skipped
placeholder  a pixel, or a redirect to a "no image" icon                                    skipped
corrupt      no picture of a kind that is read                                              skipped
too large    in bytes (``max_picture_bytes``), or in pixels by its header                   skipped
refused      any other 4xx, or a web page in its place (a proxy's, a bot check's)           asked again
forbidden    its address, or a redirect of it, is outside the allow-list                    asked again
failed       no answer, a broken one, 429 or 5xx, after all retries                         asked again
===========  =============================================================================  ================
"""

import codecs
import email.utils
import hashlib
import io
import json
import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from tqdm.auto import tqdm

from icssl_lib.catalogue import Report
from icssl_lib.config import AmazonSource
from icssl_lib.images import FORMATS, MAX_PIXELS, alone, written_whole
from icssl_lib.sources.amazon import LOG, NO_PICTURE, meta_path, picture_path, read_log, read_products

FINAL = ("ok", "gone", "placeholder", "corrupt", "too large")  # not asked for again
MAX_REDIRECTS = 5
RETRIED = (408, 425, 429, 500, 502, 503, 504)
GIVE_UP = 50  # pictures that fail or are refused one after the other: the network is gone, or we are not welcome
MIN_SIDE = 8  # pixels; smaller ones are placeholders


class FetchError(ValueError):
    """Nothing more can be fetched; the message says what, from where and what to do."""


class _Status(Exception):
    """A request ends with a status other than ok."""

    def __init__(self, status: str, detail: object = "") -> None:
        super().__init__(str(detail))
        self.status = status


class _Again(Exception):
    """A request is worth another try; ``seconds`` is what Retry-After asks for, 0 without one."""

    def __init__(self, detail: str, seconds: float = 0.0) -> None:
        super().__init__(detail)
        self.seconds = seconds


def fetch(name: str, source: AmazonSource, progress: bool = True) -> dict[str, Any]:
    """Fetch what is not there yet of one dataset's metadata and pictures. Dead pictures are counted, no error.

    One process at a time works in a folder; a second waits for it.

    Returns:
        ``meta`` (name, bytes, sha256 of the metadata file) and ``pictures`` (status to count, by name).

    Raises:
        FetchError: the metadata cannot be fetched or is not what ``sha256`` says, no picture could be had, or the
            disk is full. The same command goes on.
        CatalogueError: the metadata cannot be read.
    """
    # One process at a time: the limits per host hold for all genres of a study.
    with _stored_in(source.folder), alone(source.folder / ".lock"), Client(source) as client:
        path = meta_path(source)
        if source.remote and not path.is_file():
            fetch_file(client, source.meta, path, progress)
        report, sizes = Report(), Counter()
        products = []
        for product in read_products(name, source, report):
            sizes[product.label] += 1
            products.append((product.label, product.url))
        wanted = {picture_path(url): url for label, url in products if url and sizes[label] >= source.min_class_size}
        counts = fetch_pictures(client, name, wanted, progress)
        return {"meta": _describe(path, source), "pictures": dict(sorted(counts.items()))}


class Client:
    """GET requests within the limits of a source; usable from several threads."""

    def __init__(self, source: AmazonSource) -> None:
        self.source = source
        self.stop = threading.Event()  # ends all waiting
        self._gates: dict[str, _Gate] = {}
        self._lock = threading.Lock()
        self._http = httpx.Client(
            follow_redirects=False,
            timeout=source.timeout,
            headers={"User-Agent": "icssl (research; one copy per study)", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._http.close()

    def get(self, url: str, headers: dict[str, str], use: Callable[[httpx.Response], Any]) -> Any:
        """``use(response)`` of one request, redirects followed by hand.

        Raises: _Status: forbidden. _Again, httpx.TransportError: worth another try.
        """
        for _ in range(MAX_REDIRECTS + 1):
            with self._gate(url) as gate, self._http.stream("GET", url, headers=headers) as response:
                if response.next_request is not None:
                    url = str(response.next_request.url)
                    continue
                if response.status_code in RETRIED:
                    seconds = min(_retry_after(response), self.source.max_wait)
                    gate.pause(seconds)  # it is meant for all that ask this host
                    raise _Again(f"HTTP {response.status_code}", seconds)
                return use(response)
        raise _Status("forbidden", f"more than {MAX_REDIRECTS} redirects")

    def backoff(self, attempt: int, error: Exception) -> None:
        """Wait before try ``attempt`` + 1: 0.5 s, doubled each time, with jitter; or what the host asked for."""
        seconds = getattr(error, "seconds", 0) or min(0.5 * 2**attempt, self.source.max_wait) * random.uniform(0.5, 1)
        self.stop.wait(seconds)

    @contextmanager
    def _gate(self, url: str) -> Iterator["_Gate"]:
        try:
            address = httpx.URL(url)
            host = address.host if address.port is None else f"{address.host}:{address.port}"
        except httpx.InvalidURL as error:
            raise _Status("forbidden", f"no address: {error}") from None
        if address.scheme not in ("http", "https") or address.userinfo or host not in self.source.hosts:
            raise _Status("forbidden", f"{address.scheme}://{host} is not among `hosts`")
        with self._lock:
            gate = self._gates.setdefault(host, _Gate(self.source.connections, self.source.requests_per_second))
        with gate.free:
            gate.wait(self.stop)
            yield gate


class _Gate:
    """What one host is asked at most: ``connections`` at a time, ``rate`` requests a second, none during a pause."""

    def __init__(self, connections: int, rate: float) -> None:
        self.free = threading.BoundedSemaphore(connections)
        self._interval, self._next, self._lock = 1 / rate, 0.0, threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        while True:
            with self._lock:
                seconds = self._next - time.monotonic()
                if seconds <= 0:
                    self._next = time.monotonic() + self._interval
                    return
            if stop.wait(seconds):
                raise _Status("failed", "stopped")

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _retry_after(response: httpx.Response) -> float:
    """Seconds, 0 where the header is absent or makes no sense."""
    value = response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


# --- pictures ---


def fetch_pictures(client: Client, name: str, wanted: dict[str, str], progress: bool = True) -> Counter[str]:
    """Fetch pictures that have no final status yet.

    Args:
        wanted: path below the source's folder to address.

    Returns:
        The number of wanted pictures of each status.

    Raises:
        FetchError: GIVE_UP pictures failed in a row, or there is none and not because all are gone.
    """
    source, statuses, row, problem = client.source, read_log(client.source.folder), 0, ""
    final = {path for path in wanted if statuses.get(path) in FINAL}
    final -= {path for path in final if statuses[path] == "ok" and not (source.folder / path).is_file()}
    todo = [(path, url) for path, url in wanted.items() if path not in final]
    with (
        _log(source.folder / LOG) as log,
        tqdm(total=len(wanted), initial=len(final), desc=f"pictures of {name}", unit="", disable=not progress) as bar,
        ThreadPoolExecutor(source.connections) as pool,
    ):
        try:
            for entry in _as_done(pool, lambda item: fetch_picture(client, *item), todo, 4 * source.connections):
                log.write(json.dumps(entry) + "\n")
                statuses[entry["path"]] = status = entry["status"]
                bar.update()
                if status in ("failed", "refused", "forbidden"):
                    problem = f"{entry['url'][:200]}: {status}: {entry['detail']}"
                if status != "forbidden":  # nobody was asked
                    row = row + 1 if status in ("failed", "refused") else 0
                if row >= GIVE_UP:
                    raise FetchError(
                        f"dataset {name}: {row} pictures in a row could not be fetched, the last one {problem}; "
                        "is there a network, and does the host let us in? Nothing is lost: the same command goes on"
                    )
        finally:
            client.stop.set()  # so that an error does not wait for the retries of others
    counts = Counter(statuses[path] for path in wanted)
    if problem and not counts["ok"]:
        raise FetchError(
            f"dataset {name}: none of {len(wanted)} pictures could be fetched, the last one {problem}; is there a "
            "network, and are `hosts` and `meta` right?"
        )
    return counts


def _as_done(pool: ThreadPoolExecutor, work: Callable, items: Iterable, window: int) -> Iterator:
    """Results as they come, at most ``window`` items waiting: a future for each of a million would fill the memory."""
    pending = set()
    for item in items:
        pending.add(pool.submit(work, item))
        if len(pending) >= window:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)


def fetch_picture(client: Client, path: str, url: str) -> dict[str, Any]:
    """Fetch one picture to ``path`` below the source's folder, and say what became of it: an entry of the log.

    Raises: OSError: it cannot be stored.
    """
    entry: dict[str, Any] = {"path": path, "status": "failed", "bytes": 0, "sha256": "", "url": url, "detail": ""}
    for attempt in range(client.source.retries + 1):
        try:
            data = client.get(url, {}, lambda response: _read_picture(response, client.source))
        except (httpx.TransportError, _Again) as error:
            entry["detail"] = str(error) or type(error).__name__
            if attempt < client.source.retries and not client.stop.is_set():
                client.backoff(attempt, error)
            continue
        except _Status as error:
            return entry | {"status": error.status, "detail": str(error)[:200]}
        target = client.source.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as part:
            part.write_bytes(data)
        return entry | {"status": "ok", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "detail": ""}
    return entry


def _read_picture(response: httpx.Response, source: AmazonSource) -> bytes:
    """The bytes of a picture that Pillow can open.

    Raises: _Status: any but ok. _Again, httpx.TransportError: broken off, or too slow.
    """
    if response.status_code in (404, 410):
        raise _Status("gone", f"HTTP {response.status_code}")
    if response.status_code != 200:
        raise _Status("refused", f"HTTP {response.status_code}")
    if NO_PICTURE.search(response.url.path):
        raise _Status("placeholder", response.url.path)
    data, deadline = bytearray(), time.monotonic() + 4 * source.timeout
    kind = response.headers.get("content-type", "").strip().lower()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > source.max_picture_bytes:
            _refuse_page(data, kind)
            raise _Status("too large", f"more than {source.max_picture_bytes} bytes")
        if time.monotonic() > deadline:
            raise _Again(f"slower than {4 * source.timeout:g} s")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _Status("too large", error) from None
    except Exception as error:  # decoders raise nearly anything on a broken file
        _refuse_page(data, kind)
        raise _Status("corrupt", f"{kind}: {error}") from None
    if width * height > MAX_PIXELS:
        raise _Status("too large", f"{width} x {height} pixels")
    if min(width, height) < MIN_SIDE:
        raise _Status("placeholder", f"{width} x {height} pixels")
    return bytes(data)


def _refuse_page(data: bytearray, kind: str) -> None:
    """A web page says nothing about the picture: a proxy or a bot check sends one for each, with status 200.

    Args:
        data: what is no picture, or its beginning.
        kind: its content type. An SVG declared as an image is what the host has, and not read.

    Raises: _Status: refused.
    """
    head = bytes(data[:1000]).lower()
    drawing = kind.startswith("image/svg") or (kind.startswith("image/") and b"<svg" in head and b"<html" not in head)
    if kind.startswith("text/html") or (_is_markup(head) and not drawing):
        raise _Status("refused", f"a web page in its place ({kind or 'of no type'})")


def _is_markup(head: bytes) -> bool:
    """Whether a body that begins so is HTML or XML."""
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"<"


@contextmanager
def _log(path: Path) -> Iterator[Any]:
    """The log, to append lines to. A last line that a kill tore is closed first, so that it spoils no other."""
    with path.open("a+b") as file:
        if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")
    with path.open("a", encoding="utf-8", buffering=1) as file:
        yield file


# --- the metadata file ---


def fetch_file(client: Client, url: str, target: Path, progress: bool = True) -> None:
    """Fetch a large file, going on where an earlier call ended if the file is still the same by ETag or date.

    Its beginning lies in ``<target>.partial``, and stays there when the host refuses the rest. A try that brought
    something does not count as one of the retries.

    Raises:
        FetchError: not to be had, a web page instead, larger than ``max_file_bytes``, or of another ``sha256``.
    """
    partial, attempt = target.with_name(target.name + ".partial"), 0
    while True:
        had = partial.stat().st_size if partial.is_file() else 0
        headers = _resume_headers(partial, url) if had else {}
        try:
            client.get(url, headers, lambda response: _append(response, partial, url, client.source, progress))
            break
        except _Status as error:
            if error.status == "too large":  # what is here is of no use; of any other status, a passing one, it is
                partial.unlink(missing_ok=True)
            remedy = _remedy(bool(headers) and partial.is_file())
            raise FetchError(f"{url}: {error.status}: {error}; {remedy}") from None
        except (httpx.TransportError, _Again) as error:
            came = partial.is_file() and partial.stat().st_size > had
            attempt = 0 if came else attempt + 1
            if attempt > client.source.retries:
                raise FetchError(
                    f"{url}: cannot be fetched: {str(error) or type(error).__name__}; is there a network? "
                    "The same command goes on where this one stopped"
                ) from None
            client.backoff(attempt, error)
    with partial.open("rb") as file:
        if _is_markup(file.read(200)):
            partial.unlink()
            raise FetchError(f"{url}: a web page came in place of the file; {_remedy(False)}")
    if client.source.sha256 and (found := _sha256(partial)) != client.source.sha256:
        partial.unlink()
        raise FetchError(f"{url}: its sha256 is {found}, `sha256` says {client.source.sha256}; another version?")
    partial.replace(target)
    _notes(partial).unlink(missing_ok=True)


def _remedy(resumes: bool) -> str:
    """What to do about a file that is refused; ``resumes``: a part of it is here, to go on from."""
    here = "what came already stays, the same command goes on from there; if this comes again, " if resumes else ""
    return here + "set `meta` to another address or a local file"


def _notes(partial: Path) -> Path:
    """Beside a partial file: its address, and what tells whether the file there is still the same."""
    return partial.with_name(partial.name + ".json")


def _resume_headers(partial: Path, url: str) -> dict[str, str]:
    """Ask for the rest, if the file is still the same; {}: ask for all of it."""
    try:
        notes = json.loads(_notes(partial).read_text(encoding="utf-8"))
        if notes["url"] == url and notes["validator"]:
            return {"Range": f"bytes={partial.stat().st_size}-", "If-Range": notes["validator"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _append(response: httpx.Response, partial: Path, url: str, source: AmazonSource, progress: bool) -> None:
    """Write a response's body to the end of the partial file (206) or in its place (200).

    Raises: _Status: refused, too large. FetchError: a web page, a full disk. _Again, httpx.TransportError: broken off.
    """
    had = partial.stat().st_size if response.status_code in (206, 416) and partial.is_file() else 0
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("content-range", ""))
    if response.status_code in (206, 416):
        if response.status_code == 416 and span and span[2] == str(had):
            return  # all of it is here: the kill came between the last byte and the new name
        if response.status_code == 416 or not span or span[1] != str(had):
            partial.unlink(missing_ok=True)
            raise _Again("the rest was asked for and something else came")
        length = None if span[2] == "*" else int(span[2])
    elif response.status_code == 200:
        length = int(response.headers["content-length"]) if "content-length" in response.headers else None
    else:
        raise _Status("refused", f"HTTP {response.status_code}")
    if (length or 0) > source.max_file_bytes:
        raise _Status("too large", f"{length} bytes, `max_file_bytes` is {source.max_file_bytes}")
    chunks = response.iter_raw()
    if response.status_code == 200:
        first = next(chunks, b"")
        if _is_markup(first):  # seen before anything is removed: a login page must not take the place of gigabytes
            resumes = "range" in response.request.headers
            raise FetchError(f"{url}: a web page came in place of the file; {_remedy(resumes)}")
        partial.unlink(missing_ok=True)  # before the notes: new notes must not stand beside an old beginning
        etag = response.headers.get("etag", "")
        validator = response.headers.get("last-modified", "") if not etag or etag.startswith("W/") else etag
        with written_whole(_notes(partial)) as path:
            path.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        chunks = chain([first], chunks)
    if length and length - had > (free := shutil.disk_usage(partial.parent).free):
        raise FetchError(f"{partial.parent}: {(length - had) / 1e9:.1f} GB to come, {free / 1e9:.1f} GB free")
    with (
        partial.open("ab") as file,
        tqdm(total=length, initial=had, desc=partial.stem, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for chunk in chunks:
            had += len(chunk)
            if had > source.max_file_bytes:
                raise _Status("too large", f"more than `max_file_bytes`, {source.max_file_bytes}")
            file.write(chunk)
            bar.update(len(chunk))
    if length is not None and had != length:
        raise _Again(f"{had} of {length} bytes came")


def _describe(path: Path, source: AmazonSource) -> dict[str, Any]:
    """Name, bytes and sha256 of the metadata file; the sum is kept beside a fetched one."""
    sums = path.with_name(path.name + ".sha256")
    size = path.stat().st_size
    found = None
    if source.remote and sums.is_file() and sums.stat().st_mtime >= path.stat().st_mtime:
        found = sums.read_text(encoding="utf-8").partition(" ")[0]
    if not found:
        found = _sha256(path)
        if source.remote:
            with written_whole(sums) as part:
                part.write_text(f"{found}  {path.name}\n", encoding="utf-8")  # as `sha256sum -c` reads it
    if source.sha256 not in (None, found):
        raise FetchError(f"{path}: its sha256 is {found}, `sha256` says {source.sha256}; another version?")
    return {"file": path.name, "bytes": size, "sha256": found}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _stored_in(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise FetchError(
            f"{error.filename or folder}: cannot be stored: {error.strerror or error}; free some disk or use another "
            "`folder`; what is there stays, the same command goes on"
        ) from error
