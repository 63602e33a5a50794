"""A run on several hosts over SSH: set up, launched, watched, made elastic. Standard library only.

    python -m easylm_jax.runtime.launch.hosts setup HOSTS [--code FOLDER] [--extra gpu] [--python 3.12]
    python -m easylm_jax.runtime.launch.hosts launch | supervise HOSTS [options] -- RECIPE [FIELD=VALUE ...]
    python -m easylm_jax.runtime.launch.hosts status | stop | logs HOSTS [options]

HOSTS is a file with one host on each line, as ssh knows it, and after a space its address for the other hosts if that
is another: `me@node1.example.org 10.0.0.1`. The first is the coordinator. Everything is below `~/easylm` on each host,
as on the workers of a TPU pod: `code/`, `venv/`, `jobs/`, and `shared/`, a folder of all hosts (NFS, or a mounted
bucket), to which a run writes unless it is given --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.runtime import exit_status
from easylm_jax.runtime.launch import status as status_table
from easylm_jax.runtime.launch import supervisor
from easylm_jax.runtime.launch.status import Report, last_answer
from models.errors import UserError

SSH = (
    "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=accept-new",
    "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3",
)  # fmt: skip
NO_CONNECTION = 255  # ssh's own exit status
ROOT = Path(__file__).resolve().parents[3]
PORT = 8476  # JAX's default; a start takes the next one, since the last may still be closing
_PORTS = 20
_NOT_SET_UP = "easylm: error: this host is not set up; run tpu_scripts/elsewhere/ssh.sh setup"


@dataclasses.dataclass(frozen=True)
class Host:
    """`name` as ssh knows it, `address` as the other hosts do."""

    name: str
    address: str


def read_hosts(path: Path) -> tuple[Host, ...]:
    """The hosts of a file.

    Raises:
        UserError: it cannot be read, names none, names one twice, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"cannot read the hosts of {path}: {reason}; write one on each line") from error
    found: list[Host] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or words[0].startswith("-"):
            raise UserError(f"{path}:{number}: write a host as ssh knows it, and after a space its address")
        if words[0] in [host.name for host in found]:
            raise UserError(f"{path}:{number}: {words[0]} is there twice; a host runs one process")
        found.append(Host(words[0], words[-1].rpartition("@")[2]))
    if not found:
        raise UserError(f"{path} names no host; write one on each line")
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command on a host printed, and its exit status."""

    status: int
    out: str

    @property
    def error(self) -> str:
        """Its reason in one line."""
        lines = [line for line in self.out.splitlines() if line.strip()]
        named = [line.removeprefix("easylm: error: ") for line in lines if line.startswith("easylm: error: ")]
        return (named or lines or [f"exit status {self.status}"])[-1]


@dataclasses.dataclass
class Hosts:
    """The hosts of a run, as the supervisor reaches them.

    Attributes:
        job: its name on the hosts; `arguments` are those of `easylm run`.
        elastic: the run may be started on fewer hosts.
    """

    hosts: tuple[Host, ...]
    job: str = "run"
    arguments: tuple[str, ...] = ()
    elastic: bool = False
    starts: Iterable[int] = dataclasses.field(default_factory=lambda: itertools.cycle(range(_PORTS)))

    def on(self, commands: str | dict[int, str], stdin: bytes | None = None) -> dict[int, Answer]:
        """Runs a command line on all hosts, or one of its own on each that is named; their answers by number."""
        lines = dict.fromkeys(self.all, commands) if isinstance(commands, str) else commands
        running = {
            i: subprocess.Popen(
                [*SSH, self.hosts[i].name, line], stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ) for i, line in lines.items()
        }  # fmt: skip
        outputs = {i: process.communicate(stdin)[0].decode(errors="replace") for i, process in running.items()}
        return {i: Answer(process.returncode, outputs[i]) for i, process in running.items()}

    @property
    def all(self) -> range:
        return range(len(self.hosts))

    def worker(self, action: str, rest: str = "", environment: str = "") -> str:
        """A command line for `worker.py` on a host."""
        job = shlex.quote(self.job)
        return (
            f"cd -P easylm/code 2>/dev/null && [ -x ../venv/bin/python ] || {{ echo {shlex.quote(_NOT_SET_UP)}; "
            f"exit 2; }}; {environment} exec ../venv/bin/python -m easylm_jax.runtime.launch.worker {action} "
            f"../jobs/{job} {rest} 2>&1"
        )

    # What the supervisor asks for

    def report(self) -> Report:
        """The state of the job on every host; None where one does not answer.

        Raises:
            UserError: a host answers that it is not set up.
        """
        answers = self.on(self.worker("status"))
        found: list[dict[str, Any] | None] = []
        for i, answer in answers.items():
            if answer.status == exit_status.USER_ERROR:
                raise UserError(f"{self.hosts[i].name}: {answer.error}")
            found.append(last_answer(answer.out) if answer.status == 0 else None)
        return Report("READY", tuple(found))

    def launch(self, workers: Sequence[int] | None = None) -> int:
        """Starts the job, on all hosts or on these; if it fails on one, it is stopped on all."""
        chosen = list(self.all if workers is None else workers)
        coordinator = f"{self.hosts[chosen[0]].address}:{PORT + next(iter(self.starts))}"
        out = () if any(word.split("=")[0] == "--out" for word in self.arguments) else ("--out", "~/easylm/shared/runs")
        command = " ".join([*map(shlex.quote, self.arguments), *out])
        environment = f"EASYLM_COORDINATOR={coordinator} EASYLM_PROCESSES={len(chosen)}"
        environment += " EASYLM_ELASTIC=1" if self.elastic else ""
        start = f"-- ../venv/bin/python -m easylm_jax run {command}"
        answers = self.on({
            i: self.worker("start", start, f"{environment} EASYLM_PROCESS_ID={place}")
            for place, i in enumerate(chosen)
        })  # fmt: skip
        failed = {i: answer for i, answer in answers.items() if answer.status}
        if not failed:
            return 0
        self.on(self.worker("stop", "--now"))
        first = min(failed, key=lambda i: (failed[i].status != exit_status.USER_ERROR, i))
        _say(f"error: {self.hosts[first].name}: {failed[first].error}")
        users = any(answer.status == exit_status.USER_ERROR for answer in failed.values())
        return exit_status.USER_ERROR if users else exit_status.TEMPORARY

    def stop(self, now: bool) -> int:
        """Stops the job where a host answers."""
        answers = self.on(self.worker("stop", "--now" if now else ""))
        return next((answer.status for answer in answers.values() if answer.status not in (0, NO_CONNECTION)), 0)

    def recreate(self) -> int:
        """Hosts cannot be made anew: 0 once all answer again, 69 (unavailable) before."""
        return exit_status.UNAVAILABLE if None in self.report().workers else 0

    # The other commands

    def setup(self, code: Path, python: str, extra: str) -> int:
        """Copies the code to every host and makes a Python environment of its own for it there."""
        packed = _packed(code)
        folder = f"code-{zlib.crc32(packed):08x}"
        answers = self.on(
            f"set -e; mkdir -p easylm/jobs easylm/{folder}; tar -xz -C easylm/{folder}; touch easylm/{folder}; "
            f"ln -sfn {folder} easylm/code; ls -dt easylm/code-* | tail -n +4 | xargs -r rm -rf; "
            f"exec bash easylm/code/tpu_scripts/worker_setup.sh {shlex.quote(python)} {shlex.quote(extra)} '' 2>&1",
            packed,
        )  # fmt: skip
        return self._told(answers, "is set up")

    def logs(self, lines: int) -> int:
        """Prints the last lines of every host's log."""
        log = f"easylm/jobs/{shlex.quote(self.job)}/log.txt"
        missing = shlex.quote(f"easylm: error: no job {self.job} was started here")
        answers = self.on(f"[ -e {log} ] || {{ echo {missing}; exit 2; }}; tail -n {lines} {log}")
        for i, answer in answers.items():
            if answer.status == 0:
                print("".join(f"[{self.hosts[i].name}] {line}\n" for line in answer.out.splitlines()), end="")
        return self._told(answers, None)

    def _told(self, answers: dict[int, Answer], done: str | None) -> int:
        """Says what failed first, or that all is done; the exit status."""
        for i, answer in answers.items():
            if answer.status == NO_CONNECTION:
                _say(f"error: no SSH connection to {self.hosts[i].name}: {answer.error}")
                return exit_status.TEMPORARY
            if answer.status:
                _say(f"error: {self.hosts[i].name}: {answer.error}")
                return exit_status.USER_ERROR
        if done:
            _say(f"every host {done}")
        return 0


def _packed(code: Path) -> bytes:
    """The project as a tar file: what git tracks or does not ignore, without git everything but environments and runs.

    Raises:
        UserError: the folder is not the project's.
    """
    if not (code / "easylm_jax").is_dir():
        raise UserError(f"{code} is not the project's folder (it has no easylm_jax); name it with --code")
    listed = subprocess.run(
        ["git", "-C", code, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True
    )  # fmt: skip
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name and (code / name).exists()]
    else:
        skipped = ("runs", "__pycache__")
        paths = (path.relative_to(code) for path in code.rglob("*") if path.is_file())
        names = [str(path) for path in paths if not any(p in skipped or p.startswith(".venv") for p in path.parts)]
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
            for name in sorted(names):
                archive.add(code / name, arcname=name, recursive=False)
        file.seek(0)
        return file.read()


def _say(text: str) -> None:
    print(f"hosts: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit statuses are those of `exit_status`."""
    parser = argparse.ArgumentParser(prog="ssh.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("action", choices=("setup", "launch", "supervise", "status", "stop", "logs"))
    parser.add_argument("hosts", type=Path)
    parser.add_argument("--job", default="run", help="its name on the hosts (default: run)")
    parser.add_argument("--code", type=Path, default=ROOT, help="setup: the project's folder")
    parser.add_argument("--python", default="3.12", help="setup: the version of Python")
    parser.add_argument("--extra", default="gpu", help="setup: gpu or tpu (default: gpu)")
    parser.add_argument("--lines", type=int, default=50, help="logs: how many of each host")
    parser.add_argument("--now", action="store_true", help="stop: at once, without saving")
    parser.add_argument(
        "--elastic", type=int, metavar="N", help="supervise: go on without hosts that do not answer, on at least N"
    )
    supervisor.add_limits(parser)
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:cut]), tuple(words[cut + 1 :])
    try:
        return _act(given, command)
    except UserError as error:
        _say(f"error: {error}")
        return exit_status.USER_ERROR


def _act(given: argparse.Namespace, command: tuple[str, ...]) -> int:
    if "/" in given.job or given.job.startswith("."):
        raise UserError(f"job name {given.job!r} must be usable as the name of a folder")
    hosts = Hosts(read_hosts(given.hosts), given.job, command, given.elastic is not None)
    if given.action in ("launch", "supervise") and not command:
        raise UserError(f"which recipe? write it after --: ssh.sh {given.action} HOSTS -- recipes/quickstart.py")
    if given.elastic is not None and not 1 <= given.elastic <= len(hosts.hosts):
        raise UserError(f"--elastic must be a number of hosts from 1 to {len(hosts.hosts)}, not {given.elastic}")
    match given.action:
        case "setup":
            return hosts.setup(given.code, given.python, given.extra)
        case "launch":
            if any(worker and worker["state"] == "running" for worker in hosts.report().workers):
                raise UserError(f"job {given.job} is running already; stop it, or give another --job")
            return hosts.launch()
        case "supervise":
            return supervisor.supervise(hosts, given, given.elastic)
        case "status":
            print(status_table.table(hosts.report()))
            return 0
        case "stop":
            return hosts.stop(given.now)
    return hosts.logs(given.lines)


if __name__ == "__main__":
    sys.exit(main())
