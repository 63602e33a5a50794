"""One command on one worker: started so that it survives the SSH connection, reported on, stopped.

    python -m easylm_jax.runtime.launch.worker start JOB -- COMMAND ...    returns once the command runs
    python -m easylm_jax.runtime.launch.worker status JOB                  one line of JSON
    python -m easylm_jax.runtime.launch.worker stop JOB [--now]
    python -m easylm_jax.runtime.launch.worker profile JOB --seconds 5

JOB is a folder on the worker's own disk:

    log.txt          what the command prints, of all its starts
    state.json       its process, while it runs and after
    exit.json        how it ended
    heartbeat.json   its phase and step, written by its watchdog
    stop             the user asked it to stop
    profile.json     a request for a profile; profile/ is where it is written

Only the processes that are recorded here are ever signalled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easylm_jax.runtime import exit_status, files
from easylm_jax.runtime.locks import locked

HEARTBEAT_VARIABLE = "EASYLM_HEARTBEAT_FILE"
PROFILE_VARIABLE = "EASYLM_PROFILE_FILE"
DUMP_SIGNAL = signal.SIGUSR1
"""On which a run prints the stacks of all its threads to stderr (`processes.initialize_processes`)."""
_DUMP_SECONDS = 0.5
LOG, STATE, EXIT, HEARTBEAT, STOP, PROFILE = (
    "log.txt", "state.json", "exit.json", "heartbeat.json", "stop", "profile.json",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 2: the job runs already, or its folder cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m easylm_jax.runtime.launch.worker", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("action", choices=("start", "status", "stop", "profile", "watch"))
    parser.add_argument("job", type=Path)
    parser.add_argument("--now", action="store_true", help="stop: kill at once, without saving")
    parser.add_argument("--grace", type=float, default=600.0, help="stop: seconds to save, then the command is killed")
    parser.add_argument("--seconds", type=float, default=5.0, help="profile: how long")
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:cut]), words[cut + 1 :]
    try:
        if given.action == "start":
            return start(given.job, command)
        if given.action == "watch":
            return watch(given.job, command)
        if given.action == "stop":
            return stop(given.job, given.grace, now=given.now)
        if given.action == "profile":
            return profile(given.job, given.seconds)
    except OSError as error:
        return _fail(f"cannot write {error.filename or given.job}: {error.strerror}")
    print(json.dumps(status(given.job)))
    return 0


def start(job: Path, command: Sequence[str], patience: float = 30.0, settle: float = 2.0) -> int:
    """Starts `command` in a session of its own and returns once it runs, within `patience` seconds.

    A command that fails within `settle` seconds, such as for a recipe that does not exist, fails the start.
    """
    if not command:
        return _fail("no command; write it after --")
    job.mkdir(parents=True, exist_ok=True)
    with locked(job / "lock", timeout=math.inf) as held:  # two starts at once must not both find nothing running
        if not held:
            return _fail(f"{job} is on a file system without locks; put it on the worker's own disk")
        if _running(job):
            return _fail(f"{job.name} is running already; stop it, or give another job name")
        for name in (STATE, EXIT, HEARTBEAT, STOP, PROFILE):
            (job / name).unlink(missing_ok=True)
        with open(job / LOG, "ab") as log:
            log.write(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S %Z')} {' '.join(command)}\n".encode())
            log.flush()
            subprocess.run(
                [sys.executable, "-m", "easylm_jax.runtime.launch.worker", "watch", str(job.resolve()), "--", *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, check=False,
            )  # fmt: skip
        end = time.monotonic() + patience
        while not (job / STATE).exists() and not (job / EXIT).exists():
            if time.monotonic() > end:
                return _fail(f"{job.name} has not started after {patience:.0f} s; see {job / LOG}")
            time.sleep(0.02)
        end = time.monotonic() + settle
        while not (job / EXIT).exists() and time.monotonic() < end:
            time.sleep(0.02)
    ended = _read(job / EXIT)
    if ended is None or ended["status"] == 0:
        return 0
    said = _last_error(job / LOG) or ""
    _fail(said.removeprefix("easylm: error: ") or f"ended at once with exit status {ended['status']}")
    return exit_status.USER_ERROR if ended["status"] == exit_status.USER_ERROR else exit_status.TEMPORARY


def watch(job: Path, command: Sequence[str]) -> int:
    """Runs `command` and records its process and how it ended, in a process that nothing waits for."""
    if os.fork():
        return 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    environment = {
        **os.environ, HEARTBEAT_VARIABLE: str(job / HEARTBEAT), PROFILE_VARIABLE: str(job / PROFILE),
    }  # fmt: skip
    try:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
    except OSError as error:
        print(f"easylm: error: cannot run {command[0]}: {error.strerror}", flush=True)
        files.write_json(job / EXIT, {"status": exit_status.USER_ERROR, "time": time.time()})
        return 0
    files.write_json(job / STATE, {"pid": process.pid, "born": _birth(process.pid), "watcher": os.getpid(),
                                   "watcher_born": _birth(os.getpid()), "started": time.time(),
                                   "command": list(command)})  # fmt: skip
    # A signal to this process, as at the shutdown of the machine, must not lose the exit status of the command.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _signal_group(process.pid, signal.SIGTERM))
    ended = process.wait()
    _signal_group(process.pid, signal.SIGKILL)  # what it started and left, such as verifiers
    files.write_json(job / EXIT, {"status": ended, "time": time.time()})
    return 0


def status(job: Path) -> dict[str, Any]:
    """The state of a job, as JSON values.

    `state` is `absent`, `running`, `ended` or `lost` (gone without an exit status). Ages are in seconds, by this
    worker's clock: of the heartbeat file, of the last progress (a phase began or ended), and of the log's last line.
    They are None where nothing was written yet; the first two also between stages, the second between phases.
    """
    now = time.time()
    begun, ended, beat = (_read(job / name) for name in (STATE, EXIT, HEARTBEAT))
    state = "absent"
    if _running(job):
        state = "running"
    elif ended is not None:
        state = "ended"
    elif begun is not None:
        state = "lost"
    beats = state == "running" and beat is not None and beat["watching"]
    in_phase = beats and beat is not None and beat["phase"] is not None
    log = job / LOG
    return {
        "worker": os.uname().nodename,
        "state": state,
        "status": ended["status"] if state == "ended" and ended else exit_status.LOST if state == "lost" else None,
        "asked_to_stop": (job / STOP).exists(),
        "pid": begun["pid"] if begun else None,
        "stage": beat["stage"] if beat else None,
        "phase": beat["phase"] if beat and in_phase else None,
        "step": beat["step"] if beat else None,
        "heartbeat_age": round(now - beat["time"], 1) if beat and beats else None,
        "progress_age": round(now - beat["progress_time"], 1) if beat and in_phase else None,
        "log_age": round(now - log.stat().st_mtime, 1) if log.exists() else None,
        "error": _last_error(log) if state in ("ended", "lost") else None,
    }


def stop(job: Path, grace: float, now: bool = False) -> int:
    """Asks the command to save and stop (SIGTERM), and kills it after `grace` seconds, or at once if `now`.

    Does nothing if it does not run.
    """
    begun = _read(job / STATE)
    if begun is None or not _running(job):
        return 0
    if not now:
        (job / STOP).touch()
        with contextlib.suppress(ProcessLookupError):
            os.kill(begun["pid"], signal.SIGTERM)
        if _wait_until_ended(job, grace):
            return 0
    kill(begun["pid"])
    return 0 if _wait_until_ended(job, 60.0) else _fail(f"process {begun['pid']} does not end")


def kill(pid: int) -> None:
    """Kills a command and the processes that it started; a run prints the stacks of its threads into its log first.

    It does so too where it is stopped, since it continues for that, or where a thread blocks the interpreter.
    """
    if _catches(pid, DUMP_SIGNAL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, DUMP_SIGNAL)
            os.kill(pid, signal.SIGCONT)
            time.sleep(_DUMP_SECONDS)
    _signal_group(pid, signal.SIGKILL)


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, which would end it otherwise."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def profile(job: Path, seconds: float) -> int:
    """Asks the running command for a profile of `seconds` and returns once it is written, to `profile/` in the job."""
    if not _running(job):
        return _fail(f"{job.name} is not running")
    request = job / PROFILE
    files.write_json(request, {"folder": str((job / "profile").resolve()), "seconds": seconds})
    end = time.monotonic() + seconds + 60.0
    while request.exists():
        if time.monotonic() > end:
            request.unlink(missing_ok=True)
            return _fail(f"{job.name} wrote no profile within a minute; it may be between two stages")
        time.sleep(0.1)
    return 0


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is none, or only a part of one."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _birth(pid: int) -> str | None:
    """When a process began, in ticks since the machine's start: tells it from a later one with the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _running(job: Path) -> bool:
    """Whether a job's command lives, or has ended a moment ago and its exit status is not written yet."""
    begun = _read(job / STATE)
    if begun is None:
        return False
    if _birth(begun["pid"]) == begun["born"] is not None:
        return True
    return _birth(begun["watcher"]) == begun["watcher_born"] and not (job / EXIT).exists()


def _wait_until_ended(job: Path, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while _running(job):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _signal_group(pid: int, number: int) -> None:
    """Signals the command and the processes that it started; its group has its own number."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _last_error(log: Path) -> str | None:
    """The last line of the log that reports an error, else its last line."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            lines = [line.strip() for line in file.read(65536).decode(errors="replace").splitlines()]
    except OSError:
        return None
    begin = max((i + 1 for i, line in enumerate(lines) if line.startswith("=== ")), default=0)
    said = [line for line in lines[begin:] if line]
    errors = [line for line in said if line.startswith("easylm: error: ") or "easylm: hang: " in line]
    return errors[-1] if errors else said[-1] if said else None


def _fail(text: str) -> int:
    print(f"easylm: error: {text}", file=sys.stderr)
    return exit_status.USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
