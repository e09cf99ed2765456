"""Files and folders that appear whole or not at all, their checksums, and a lock between processes."""

import fcntl
import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SUMS = "SHA256SUMS"


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
    """A folder to write to, beside ``folder``; it takes its place, sealed, when the block ends without an error."""
    folder = folder.resolve()  # of a link, what it leads to
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as beside:
        part, old = Path(beside, "part"), Path(beside, "old")
        part.mkdir()
        yield part
        seal(part)
        try:
            if folder.exists():
                os.replace(folder, old)  # at once, where removing takes its time and may be killed halfway
            os.replace(part, folder)
        finally:
            if old.exists() and not folder.exists():
                os.replace(old, folder)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, *names: str) -> None:
    """Write the checksums of the files in a folder, or of those with these names, as ``sha256sum -c`` reads them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and (not names or path.name in names)]
    sums = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files if path.name != SUMS]
    with written_whole(folder / SUMS) as part:
        part.write_text("".join(sums), encoding="utf-8")
    for path in files:  # safetensors makes files for their owner alone
        path.chmod((folder / SUMS).stat().st_mode)


def damaged(folder: Path, *names: str) -> Path | None:
    """The first file, of these names or any, unlike its checksum, with a warning. None: all match, or there is none."""
    sums = folder / SUMS
    for line in sums.read_text("utf-8", "replace").splitlines() if sums.is_file() else []:
        path = folder / line[66:]
        if (not names or path.name in names) and not (path.is_file() and sha256(path) == line[:64]):
            warnings.warn(f"{path} is not as it was written ({SUMS})", stacklevel=2)
            return path
    return None


def verify(folder: Path, *names: str) -> None:
    """Raises: ValueError: a file, of these names or all, differs from its checksum."""
    if path := damaged(folder, *names):
        raise ValueError(f"{path} is not as it was written; delete {folder} to make it anew, {SUMS} if you changed it")


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[int]:
    """Hold the lock of the file ``path``, which is made, until the block ends, or this process and all that were given
    the yielded file descriptor. Raises: BlockingIOError: it is held elsewhere, and ``wait`` is false."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle.fileno()
