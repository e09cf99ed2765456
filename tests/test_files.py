"""What is written appears whole or not at all; a lock holds between processes."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from toys import flip

from icssl_lib.files import folder_written_whole, locked, verify, written_whole


def test_a_file_is_replaced_at_once_or_stays(tmp_path):
    for text in ("one", "two"):
        with written_whole(tmp_path / "file") as part:
            part.write_text(text)
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "file") as part:
        part.write_text("three") / 0
    assert (tmp_path / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_replaced_at_once_or_stays(tmp_path, monkeypatch):
    (tmp_path / "far" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "folder")
    for path in (tmp_path / "folder", tmp_path / "link"):
        for text in ("one", "two"):
            with folder_written_whole(path) as part:
                (part / text).touch()
            assert sorted(os.listdir(path)) == ["SHA256SUMS", text]

        def die(source, target, replace=os.replace):
            if source.name == "part":
                raise KeyboardInterrupt  # the old one is out of the way already
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            with pytest.raises(KeyboardInterrupt), folder_written_whole(path) as part:
                (part / "three").touch()
        assert sorted(os.listdir(path)) == ["SHA256SUMS", "two"]
    assert sorted(os.listdir(tmp_path)) == ["far", "folder", "link"]
    assert os.listdir(tmp_path / "far") == ["folder"]


def test_one_flipped_bit_is_noticed(tmp_path):
    with folder_written_whole(tmp_path / "folder") as part:
        (part / "sub").mkdir()
        for name in ("empty", "a b", "sub/c"):
            (part / name).write_bytes(b"some bytes" if name != "empty" else b"")
            (part / name).chmod(0o600)  # as safetensors leaves it
    assert (tmp_path / "folder/sub/c").stat().st_mode == (tmp_path / "folder/SHA256SUMS").stat().st_mode
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path / "folder", check=False).returncode == 0
    (tmp_path / "folder/more").touch()  # what came later is nobody's damage
    verify(tmp_path / "folder")
    for name in ("a b", "sub/c", "SHA256SUMS"):
        path = tmp_path / "folder" / name
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 2):
            flip(path, at)
            with (
                pytest.warns(UserWarning, match="not as it was written"),
                pytest.raises(ValueError, match="make it anew"),
            ):
                verify(tmp_path / "folder")
            flip(path, at)
    (tmp_path / "folder/empty").unlink()
    with pytest.warns(UserWarning, match="empty is not"), pytest.raises(ValueError, match="empty is not"):
        verify(tmp_path / "folder")
    verify(tmp_path / "folder", "c")  # which is whole
    verify(tmp_path / "never sealed")


HOLD = "import sys; from pathlib import Path; from icssl_lib.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_lock_is_of_one_process_and_falls_when_it_is_killed(tmp_path, root):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, path]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pytest.fail("locked twice")
        with ThreadPoolExecutor(1) as pool:

            def wait():
                with locked(path):
                    return "mine"

            waiting = pool.submit(wait)
            assert not waiting.done()
            holder.kill()
            assert waiting.result(timeout=30) == "mine"
    with locked(path, wait=False) as handle:
        inherited = os.dup(handle)  # as a child process would
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pytest.fail("locked twice")
    os.close(inherited)
    with locked(path, wait=False):
        pass
