"""The strict papermill: a notebook runs with parameters that it knows, or not at all."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from traitlets.config import Config

from icssl_lib.config import nearest
from icssl_lib.dag import RunError


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names in the cell tagged ``parameters``, with papermill's description of each.

    Raises: RunError: no such notebook, or no cell with that tag (papermill would then run with defaults)."""
    if not notebook.is_file():
        there = [path.name for path in notebook.parent.glob("*.ipynb")]
        raise RunError(f"{notebook}: no such notebook; {nearest(notebook.name, there)}")
    known = papermill.inspect_notebook(str(notebook))
    if not known:
        raise RunError(f"{notebook}: no parameters; tag the first code cell `parameters`")
    return known


def values_of(notebook: Path, pairs: list[str]) -> dict[str, Any]:
    """Parameters as a command line has them, name=value: text where the notebook's default is one (a path, a name that
    looks like a number), else what they are in YAML."""
    known, values = parameters_of(notebook), {}
    for name, equals, value in (pair.partition("=") for pair in pairs):
        if not equals:
            raise RunError(f"parameter '{name}': expected name=value")
        is_text = name in known and known[name]["default"][:1] in ("'", '"')
        values[name] = value if is_text else yaml.safe_load(value)
    return values


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook by papermill, refusing parameters that it does not know, which papermill only warns about.
    The output appears when the notebook has run to its end; after an error it stands beside it as ``*.failed.ipynb``.
    Raises: RunError: unknown parameter (with the nearest name), or the notebook failed."""
    known, failed = parameters_of(notebook), output.with_suffix(".failed.ipynb")
    for name in parameters:
        if name not in known:
            raise RunError(f"{notebook.name} has no parameter '{name}'; {nearest(name, list(known))}")
    failed.parent.mkdir(parents=True, exist_ok=True)
    os.environ.pop("MPLBACKEND", None)  # of this process; with "Agg" the kernel would show no figure
    os.environ["JUPYTER_PATH"] = f"{sys.prefix}/share/jupyter"  # this environment's kernel, whatever a module names
    short = "/tmp" if os.access("/tmp", os.W_OK) else None  # the path of a socket holds some hundred characters
    with tempfile.TemporaryDirectory(prefix="icssl", dir=short) as sockets:
        os.environ["JUPYTER_RUNTIME_DIR"] = sockets
        # Over IPC, each kernel with sockets of its own: parallel kernels clash on TCP ports.
        ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"} if os.name == "posix" else {}
        # A widget's state is of no use without its kernel: megabytes, and a page that asks a server for code.
        config = Config({"KernelManager": ipc, "NotebookClient": {"store_widget_state": False}})
        try:
            papermill.execute_notebook(
                str(notebook), str(failed), parameters, kernel_name="python3", progress_bar=False,
                log_output=True, cwd=str(notebook.parent), config=config, start_timeout=600,
                coalesce_streams=True,  # of a progress bar's states the last one stays
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            raise RunError(f"{notebook.name}: {error.ename}: {error.evalue} (all of it: {failed})") from None
        except DeadKernelError:
            raise RunError(f"{notebook.name}: the kernel died; out of memory?") from None
    os.replace(failed, output)
