"""A small web server on 127.0.0.1 that misbehaves as told, and what it serves: pictures, products, files."""

import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


class Server(ThreadingHTTPServer):
    """Answers by path: bytes (200), a status, a list of answers (one for each request; the last stays), or a function
    of the request. ``asked`` holds path, headers and time of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}"
        self.answers: dict[str, object] = {}
        self.asked: list[tuple[str, dict[str, str], float]] = []
        self.at_once = self.most_at_once = self.sent = 0
        self.lock = threading.Lock()

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, self.close_connection = self.server, True
        with server.lock:
            server.asked.append((self.path, dict(self.headers), time.monotonic()))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            answer = server.answers.get(self.path, 404)
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
        with suppress(BrokenPipeError, ConnectionResetError):
            if callable(answer):
                answer(self)
            elif isinstance(answer, int):
                self.reply(answer)
            else:
                self.reply(200, answer)

    def reply(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        """One response; ``length``: what Content-Length claims."""
        with self.server.lock:
            self.server.at_once -= 1  # before it is sent: a client may ask again while this thread still ends
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def truncated(body: bytes) -> Callable:
    return lambda request: request.reply(200, body[: len(body) // 2], length=len(body))


def redirect(url: str) -> Callable:
    return lambda request: request.reply(302, Location=url)


def endless(request: _Request) -> None:
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
    while True:
        request.server.sent += request.wfile.write(b"\xff\xd8\xff" + bytes(9997))


def file(body: bytes, etag: str, cut: int | None = None) -> Callable:
    """A file as servers do: Range and If-Range understood; ``cut``: the connection breaks after so many bytes."""

    def answer(request: _Request) -> None:
        span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if not span or request.headers.get("If-Range", etag) != etag:
            return request.reply(200, body[:cut], length=len(body), ETag=etag)
        begin = int(span[1])
        if begin >= len(body):
            return request.reply(416, Content_Range=f"bytes */{len(body)}")
        where = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        return request.reply(206, body[begin:][:cut], length=len(body) - begin, ETag=etag, Content_Range=where)

    return answer


def picture(colour: tuple[int, int, int] = (200, 30, 30), side: int = 32, kind: str = "JPEG") -> bytes:
    """An encoded square of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, kind)
    return data.getvalue()


def product(vintage: int, asin="B001", title="Red mug", path=("Home", "Mugs"), url=None, **more) -> str:
    """One product as the vintage's metadata write it; None leaves a field out."""
    path, images = path if path is None else list(path), url and [{"thumb": url, "hi_res": None, "variant": "MAIN"}]
    record = {
        2014: {"asin": asin, "imUrl": url, "categories": path and [path]},
        2018: {"asin": asin, "category": path, "imageURL": url and [url]},
        2023: {"parent_asin": asin, "categories": path, "images": images},
    }[vintage]
    record = {key: value for key, value in ({"title": title} | record | more).items() if value is not None}
    return repr(record) if vintage == 2014 else json.dumps(record)
