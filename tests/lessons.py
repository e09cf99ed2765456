"""Execute every lesson and every solution, as `make lessons` does.

    .venv/bin/python tests/lessons.py [03 07] [--limit 120] [--warm] [--jobs 2]

Fails when a notebook fails or takes longer than the limit, or when a self-check says anything but "Not yet" to a
lesson's stub and "Right" to its solution. Executed notebooks go to runs/lessons/executed; runs/lessons/times.csv has
seconds and memory. What is newer than its notebook and the library is not executed again.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from icssl_lib.images import written_whole
from icssl_lib.runs import ROOT, watch_memory

LIMIT = 120  # seconds, on 2 cores
COLUMNS = ["notebook", "seconds", "peak_gb", "problem"]


def execute(notebook: Path, output: Path, limit: float) -> tuple[float, float, str]:
    """Run a notebook to its end, or for ``limit`` seconds; what failed is left as ``*.failed.ipynb``.

    Returns: seconds, peak memory of its kernel in GB, and what went wrong (empty: nothing).
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    failed = output.with_suffix(".failed.ipynb")
    failed.parent.mkdir(parents=True, exist_ok=True)
    stop, problem = threading.Event(), ""
    peak, started = watch_memory(stop), time.monotonic()
    try:
        papermill.execute_notebook(
            str(notebook), str(failed), kernel_name="python3", progress_bar=False, cwd=str(notebook.parent),
            timeout_func=lambda _: max(1, started + limit - time.monotonic()),
            config=Config({"NotebookClient": {"store_widget_state": False}}),  # as icssl_lib.runs.execute
        )  # fmt: skip
    except CellTimeoutError:
        problem = f"took longer than {limit:.0f} s"
    except papermill.PapermillExecutionError as error:
        problem = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        problem = "the kernel died; out of memory?"
    stop.set()
    seconds = time.monotonic() - started
    problem = problem or wrong_checks(failed, solved=notebook.parent.name == "solutions")
    if not problem and seconds > limit:
        problem = f"took longer than {limit:.0f} s"
    if not problem:
        os.replace(failed, output)
    return seconds, peak["gb"], " ".join(problem.split())


def wrong_checks(executed: Path, solved: bool) -> str:
    """The exercises to which the self-check did not say what it must; empty: none."""
    expected, wrong = ("Right" if solved else "Not yet"), []
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        exercises = re.findall(r"""\bcheck\(["'](\d+\.\d+)["']""", "".join(cell["source"]))
        if cell["cell_type"] == "code" and exercises:
            said = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            if re.findall(r"^(Right|Not yet): ", said, re.MULTILINE) != [expected] * len(exercises):
                wrong += exercises
    return f"exercise {', '.join(wrong)}: the check does not say “{expected}”" if wrong else ""


def is_new(output: Path, notebook: Path) -> bool:
    """Whether the output is newer than the notebook and all that it calls."""
    library = [*(ROOT / "icssl_lib").rglob("*.py"), *(ROOT / "config").glob("lessons.yaml")]
    return output.is_file() and output.stat().st_mtime > max(p.stat().st_mtime for p in [notebook, *library])


def run(lessons: Path, out: Path, only: list[str], limit: float, jobs: int = 1) -> pd.DataFrame:
    """Execute the lessons, then their solutions.

    Args:
        only: beginnings of file names ("03"); empty: all.
        jobs: at a time; with more than one, memory is that of all of them.

    Returns: notebook, seconds, peak_gb, problem: what times.csv holds, those of earlier calls among them.
    """
    found = [*sorted(lessons.glob("[0-9]*.ipynb")), *sorted(lessons.glob("solutions/[0-9]*.ipynb"))]
    chosen = [path for path in found if not only or path.name.startswith(tuple(only))]
    if not chosen:
        raise SystemExit(f"{lessons}: no lesson {' '.join(only)}")
    times = out / "times.csv"
    out.mkdir(parents=True, exist_ok=True)
    known = pd.read_csv(times, keep_default_na=False) if times.is_file() else pd.DataFrame(columns=COLUMNS)
    rows = known.set_index("notebook").T.to_dict()

    def one(notebook: Path) -> tuple[str, float, float, str] | None:
        name = notebook.relative_to(lessons).with_suffix("").as_posix()
        output = out / "executed" / f"{name}.ipynb"
        if is_new(output, notebook) and rows.get(name, {}).get("problem") == "":
            return None
        output.unlink(missing_ok=True)
        return name, *execute(notebook, output, limit)

    with ThreadPoolExecutor(jobs) as pool:
        done = [pool.submit(one, notebook) for notebook in chosen]
        for future in tqdm(as_completed(done), total=len(done), unit="notebook"):
            if future.result() is None:
                continue
            name, seconds, peak, problem = future.result()
            rows[name] = {"seconds": round(seconds, 1), "peak_gb": round(peak, 2), "problem": problem}
            tqdm.write(f"{name:30} {seconds:6.1f} s  {peak:4.1f} GB  {problem or 'ok'}")
            order = [path.relative_to(lessons).with_suffix("").as_posix() for path in found]
            listed = [n for n in ["workshop", *order] if n in rows]
            table = pd.DataFrame([{"notebook": n, **rows[n]} for n in listed], columns=COLUMNS)
            with written_whole(times) as partial:
                table.to_csv(partial, index=False)
    return pd.read_csv(times, keep_default_na=False)


@contextlib.contextmanager
def warm_kernels() -> Iterator[None]:
    """Notebooks in this block run in forks of one process that has the imports, as a study's do on a CPU."""
    from icssl_lib import warm

    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="icssl") as folder, warm.serving(os.environ):
        warm.install_kernel(Path(folder))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="beginnings of file names; default: all")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default: %(default)s)")
    parser.add_argument("--warm", action="store_true", help="kernels that have imported already: spares 10 s each")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a lesson that asks a hub for anything is wrong
    os.environ.pop("MPLBACKEND", None)  # with "Agg" a kernel would show no figure
    from icssl_lib import lessons

    started = time.monotonic()
    _, out = lessons.workshop()
    print(f"the workshop's catalogue and encoders: {time.monotonic() - started:.1f} s")
    with warm_kernels() if options.warm else contextlib.nullcontext():
        times = run(ROOT / "notebooks" / "lessons", out, options.only, options.limit, options.jobs)
    print(times.to_string(index=False))
    return int((times["problem"] != "").any())


if __name__ == "__main__":
    sys.exit(main())
