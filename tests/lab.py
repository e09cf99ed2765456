"""A real JupyterLab on loopback for the browser tests, and a notebook run in it as a person would."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOOPBACK = ("http://127.0.0.1:", "ws://127.0.0.1:")
IGNORE = (
    "Could not restore the debugger state: Canceled future",  # JupyterLab asks on opening; the restart drops it
    "No kernel to restart",  # a click before the kernel is there; see `ran`
)
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are in the page as well
}


@contextmanager
def lab(folder: Path, where: Path, notebook: str) -> Iterator[str]:
    """JupyterLab on ``folder``, on loopback behind a token, with configuration of its own below ``where``.

    Yields: the address of the notebook.
    """
    for plugin, settings in SETTINGS.items():
        path = where / "settings" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}_DIR": str(where / sub) for name, sub in folders.items()}
    environment |= {f"JUPYTERLAB_{name}_DIR": str(where / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    environment |= {"IPYTHONDIR": str(where / "ipython")}
    environment.pop("MPLBACKEND", None)  # the tests' own, which shows no figure
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"]
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    with (where / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait(lambda: answers(server, f"{address}/api?token={token}"), 60, (where / "log").read_text)
            yield f"{address}/lab/tree/{notebook}?token={token}"
        finally:
            server.terminate()  # its kernels go with it
            server.wait(20)


def answers(server: subprocess.Popen, address: str) -> bool:
    assert server.poll() is None, "JupyterLab has stopped"
    try:
        return urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def wait(condition, seconds: float, explain=lambda: ""):
    """Until ``condition()`` is true, and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {explain()}")


def ran(page: "Page", timeout: float) -> None:
    """Restart the kernel and run all cells, as a person would; wait until the last has ended."""
    idle, prompts = '.jp-NotebookPanel [data-status="idle"]', page.locator(".jp-CodeCell .jp-InputPrompt")
    page.wait_for_selector(idle, timeout=60_000)
    page.get_by_text("| Idle").wait_for()

    def begun() -> bool:
        """A click before JupyterLab knows its kernel does nothing; one clicks again."""
        page.locator('[data-command="notebook:restart-run-all"]').first.click()
        page.locator(".jp-Dialog button.jp-mod-accept").click()
        for _ in range(75):
            page.wait_for_timeout(200)
            if prompts.first.inner_text() != "[ ]:":
                return True
        return False

    wait(begun, 60)
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    wait(lambda: failed.count() or all(re.search(r"\d", text) for text in prompts.all_inner_texts()), timeout)
    page.wait_for_selector(idle, timeout=60_000)
