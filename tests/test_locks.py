"""One run to a stage's folder: a second start ends in one line, whoever dies lets go, and nothing is mixed."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import copy_of_reference, launcher, only_line, reference, with_vocabulary

from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.locks import Locked, locked

HERE = socket.gethostname()


def test_a_held_lock_names_its_holder_and_is_free_again_afterwards(tmp_path):
    with locked(tmp_path / "lock") as held:
        assert held is True
        with pytest.raises(Locked) as caught, locked(tmp_path / "lock"):
            raise AssertionError("two hold one lock")
        assert caught.value.owner == f"process {os.getpid()} on {HERE}"
    with locked(tmp_path / "lock") as held:
        assert held is True


def test_a_lock_is_free_once_its_holder_is_killed(tmp_path):
    code = f"""
import time
from pathlib import Path
from easylm_jax.runtime.locks import locked
with locked(Path({str(tmp_path / "lock")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    repository = Path(__file__).resolve().parent.parent
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=repository)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=f"process {holder.pid} on "), locked(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path / "lock", timeout=60) as held:
        assert held is True


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "lock") as held:
        assert held is False


def stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (state T)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_of_two_starts_the_second_ends_in_one_line_and_the_first_ends_as_if_alone(tmp_path):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    first = launcher().start(*run, at="easylm_jax.train.loop:Loop._save:1:SIGSTOP")
    assert first.until(lambda: stopped(first.pid)), first.err
    folder = out / "tiny" / "pretrain"
    before = contents(folder)
    for change in ([], ["pretrain.seed=7"], ["--overwrite"]):
        line = only_line(launcher().run(*run, *change))
        assert f"stage pretrain in {folder} is being run by process {first.pid} on {HERE}; " in line
        assert "use another --out" in line
        assert contents(folder) == before
    first.signal(signal.SIGCONT)
    ended = first.wait()
    assert ended.status == 0, ended.err
    assert diff(folder, expected.root / "pretrain").identical
    assert (folder / ".lock").read_text() == ""


def test_a_lock_holds_between_the_stages_of_a_run_and_not_over_others(tmp_path):
    """Another stage of the same run may go on beside it: each has a lock of its own."""
    expected, out = reference(), copy_of_reference(tmp_path / "runs")
    (out / "tiny" / "sft" / "done.json").unlink()
    with locked(out / "tiny" / "pretrain" / ".lock"):
        assert launcher().run("run", expected.recipe, "--out", out).status == 0  # pretrain is done, sft was not


def test_done_with_other_settings_is_not_done(tmp_path):
    expected, out = reference(), copy_of_reference(tmp_path / "runs")
    folder = out / "tiny" / "sft"
    done = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_text(json.dumps({**done, "hash": "0123456789ab"}))  # as a second run left it
    line = only_line(launcher().run("run", expected.recipe, "--out", out))
    assert f"stage sft in {folder} was run with other settings (done.json does not belong to config.json)" in line
    listed = launcher().run("run", expected.recipe, "--out", out, "--list")
    assert "done, with other settings" in listed.out.splitlines()[2]


def test_a_stage_does_not_start_from_one_with_other_settings(tmp_path):
    expected, out = reference(), copy_of_reference(tmp_path / "runs")
    shutil.rmtree(out / "tiny" / "sft")
    line = only_line(launcher().run("run", expected.recipe, "pretrain.seed=7", "--only", "sft", "--out", out))
    assert f"stage sft needs pretrain, but {out}/tiny/pretrain was made with other settings" in line
    assert not (out / "tiny" / "sft").exists()
