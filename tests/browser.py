"""Headless Chromium for the browser tests: found or skipped, without network, its errors collected."""

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",  # a container's root may not make namespaces
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",  # a canvas is drawn by the CPU at once, rather than by one that plays a graphics card
]


def executable() -> str | None:
    """Chromium's path: the variable CHROMIUM, or the first known name on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started() -> "Iterator[Browser]":
    """A running Chromium; skips the test, with the reason, where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = executable()
    if path is None:
        pytest.skip(f"no browser: set CHROMIUM to its path, or install one of {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: "Browser",
    address: str,
    *,
    width: int = 1280,
    height: int = 900,
    allow: Sequence[str] = (),
    ignore: Sequence[str] = (),
    **options: object,
) -> "Iterator[Page]":
    """A page, with the network off but for addresses that begin with one of ``allow`` (`http://127.0.0.1:`).

    ``page.problems`` collects console errors, uncaught exceptions, failed and refused requests, and the block ends
    with an assertion that there are none, but for those that hold one of ``ignore``.

    Args:
        options: of Playwright's `new_context`: color_scheme="dark", has_touch, java_script_enabled, ...
    """
    offline = not any(prefix.startswith("http") for prefix in allow)
    context = browser.new_context(viewport={"width": width, "height": height}, offline=offline, **options)
    problems: list[str] = []
    local = ("file:", "data:", "blob:", "about:", *allow)

    def check(route) -> None:
        if route.request.url.startswith(local):
            route.continue_()
        else:
            problems.append(f"asked for {route.request.url[:200]}")
            route.abort()

    context.route("**/*", check)
    page = context.new_page()
    page.problems = problems
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url[:200]}"))
    try:
        page.goto(address)
        yield page
        left = [problem for problem in problems if not any(text in problem for text in ignore)]
        assert not left, left
    finally:
        context.close()


def pixels(page: "Page", selector: str) -> np.ndarray:
    """What an element looks like on the screen: (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB"))


def overflow(page: "Page") -> int:
    """How many pixels the page scrolls sideways; 0 is right."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def low_contrast(page: "Page", least: float = 4.5) -> list[tuple[float, str]]:
    """Visible texts whose contrast with their background is below ``least`` (WCAG 2.2, 1.4.3), lowest first.

    The background is the nearest opaque background colour behind the text; texts over pictures are not judged.
    """
    found, judged = page.evaluate(_CONTRAST, least)
    assert judged > 10, "hardly any text on this page"
    return sorted(map(tuple, found))


_CONTRAST = """least => {
  const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const found = new Map();
  let judged = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
    const text = node.data.trim();
    if (!text || box.width < 2 || box.height < 2 || style.visibility === "hidden" || element.closest("option")
        || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    let behind = element, back;
    do {
      back = channels(getComputedStyle(behind).backgroundColor);
      behind = behind.parentElement;
    } while (behind && back[3] === 0);
    if (back[3] === 0) back = [255, 255, 255];
    const [low, high] = [luminance(channels(style.color)), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    judged += 1;
    if (ratio < least) found.set(text.slice(0, 60), ratio);
  }
  return [[...found].map(([text, ratio]) => [ratio, text]), judged];
}"""
