"""Files and folders that appear whole or not at all, and a lock between processes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name to write to, beside ``path``; it becomes ``path`` when the block ends without an error."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, beside ``folder``; it takes its place when the block ends without an error."""
    folder = folder.resolve()  # of a link, what it leads to
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as beside:
        part, old = Path(beside, "part"), Path(beside, "old")
        part.mkdir()
        yield part
        try:
            if folder.exists():
                os.replace(folder, old)  # at once, where removing takes its time and may be killed halfway
            os.replace(part, folder)
        finally:
            if old.exists() and not folder.exists():
                os.replace(old, folder)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int]:
    """Hold the lock of the file ``path``, which is made, until the block ends, or this process and all that were given
    the yielded file descriptor. Raises: BlockingIOError: it is held elsewhere, and ``wait`` is false."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle.fileno()
