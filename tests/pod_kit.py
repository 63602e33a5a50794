"""A TPU pod on this machine: `tests/stand-in/gcloud` on the PATH, its state on disk, the scripts run against it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = REPOSITORY / "tpu_scripts"
ZONE = "us-east5-a"
PODS = "EASYLM_PODS"


def small_project(folder: Path) -> Path:
    """A project whose `easylm_jax` does what its arguments say, and needs no JAX: `sleep`, `wrong`, or nothing."""
    (folder / "easylm_jax").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "easylm_jax/runtime/launch", folder / "easylm_jax/runtime/launch")
    for name in ("__init__.py", *(f"runtime/{name}.py" for name in ("__init__", "exit_status", "files", "locks"))):
        shutil.copy(REPOSITORY / "easylm_jax" / name, folder / "easylm_jax" / name)
    (folder / "easylm_jax" / "__main__.py").write_text(
        "import os, sys, time\nprint(sys.argv[1:], os.environ.get('EASYLM_POD'), flush=True)\n"
        "print([os.environ.get(f'EASYLM_{name}') for name in ('COORDINATOR', 'PROCESSES', 'PROCESS_ID')], flush=True)\n"
        "if 'sleep' in sys.argv: time.sleep(60)\n"
        "if 'wrong' in sys.argv: print('easylm: error: no such data'); sys.exit(2)\n"
    )
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(SCRIPTS, folder / "tpu_scripts")
    return folder


@dataclass(frozen=True)
class Said:
    """How a script ended: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a mistake."""
        lines = [line for line in self.err.splitlines() if "error: " in line]
        assert len(lines) == 1 and lines[0] == self.err.splitlines()[-1], self.err
        return lines[0].partition("error: ")[2]


class StandIn:
    """A Google Cloud project of pods that are processes of this machine."""

    def __init__(self, folder: Path, devices: int = 1):
        self.folder, self.root = folder, folder / "cloud"
        self.root.mkdir(parents=True)
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(("EASYLM_", "TPU_"))},
            "PATH": f"{REPOSITORY / 'tests' / 'stand-in'}:{os.environ['PATH']}",
            "GCLOUD_STAND_IN": str(self.root), "SSH_STAND_IN": str(folder / "hosts"),
            "STAND_IN_PYTHON": sys.executable, "EASYLM_PYTHON": sys.executable,
            PODS: str(folder / "pods of mine"), "TMPDIR": str(folder), "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
            "--xla_llvm_disable_expensive_passes=true",
        }  # fmt: skip

    def start(self, script: str, *arguments: Any, **environment: str) -> subprocess.Popen:
        """Starts a script of tpu_scripts."""
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *map(str, arguments)], env={**self.environment, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, script: str, *arguments: Any, timeout: float = 240, **environment: str) -> Said:
        """Runs a script to its end."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=timeout)
        return Said(process.returncode, out, err)

    def works(self, script: str, *arguments: Any, **how: Any) -> Said:
        """Runs a script that must succeed."""
        said = self.run(script, *arguments, **how)
        assert said.status == 0, (script, said.out, said.err)
        return said

    def calls(self) -> list[list[str]]:
        """Every call of gcloud so far."""
        path = self.root / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @contextlib.contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """The state of the stand-in, to change."""
        with open(self.root / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.root / "state.json"
            value = json.loads(path.read_text()) if path.exists() else {}
            for name in ("requests", "nodes", "faults"):
                value.setdefault(name, {})
            yield value
            path.write_text(json.dumps(value))

    def goes_wrong(self, **faults: Any) -> None:
        """`full`, `no_quota`: zones; `no_permission`, `no_delete`: true; `slow`: looks until a request is granted;
        `ssh_refused`: by zone/pod, the workers that refuse."""
        with self.state() as value:
            value["faults"] = faults

    def preempt(self, name: str, zone: str = ZONE, notice: float = 5.0) -> None:
        """Takes a pod away as Google Cloud does: SIGTERM, and the end after `notice` seconds."""
        own = f"{zone}/{name}/"
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes(own):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            end = time.monotonic() + notice
            while number == signal.SIGTERM and self.processes(own) and time.monotonic() < end:
                time.sleep(0.05)
        with self.state() as value:
            value["nodes"][f"{zone}/{name}"]["state"] = "PREEMPTED"
            value["requests"][f"{zone}/{name}"]["state"] = "SUSPENDED"

    def processes(self, prefix: str = "") -> list[int]:
        """The processes of the workers whose `zone/pod/worker` begins with `prefix`."""
        markers = tuple(f"STAND_IN_WORKER={root}:{prefix}".encode() for root in (self.root, self.folder / "hosts"))
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    if any(one.startswith(markers) for one in (folder / "environ").read_bytes().split(b"\0")):
                        found.append(int(folder.name))
        return found

    def hosts(self, count: int) -> Path:
        """A file of hosts that the stand-in for ssh reaches, by the names host-0, host-1, …"""
        for i in range(count):
            (self.folder / "hosts" / f"host-{i}").mkdir(parents=True)
        path = self.folder / "my hosts.txt"
        path.write_text("# the machines\n" + "".join(f"me@host-{i} localhost\n" for i in range(count)))
        return path

    def goes_down(self, host: int) -> None:
        """A host that ssh reaches goes down: its processes end, and it refuses connections until `comes_back`."""
        (self.folder / "hosts" / f"host-{host}" / "down").touch()
        for pid in self.processes(f"host-{host}/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def comes_back(self, host: int) -> None:
        (self.folder / "hosts" / f"host-{host}" / "down").unlink()

    def home(self, name: str, worker: int, zone: str = ZONE) -> Path:
        return self.root / "pods" / zone / name / str(worker) / "home"

    def job(self, name: str, worker: int, job: str = "run") -> Path:
        return self.home(name, worker) / "easylm" / "jobs" / job

    def pid(self, name: str, worker: int, job: str = "run") -> int:
        """The process of a job on a worker."""
        return json.loads((self.job(name, worker, job) / "state.json").read_text())["pid"]

    def nothing_left(self) -> bool:
        """No request, no node, no process."""
        with self.state() as value:
            return not value["requests"] and not value["nodes"] and not self.processes()

    def close(self) -> None:
        """Ends what a failed test has left."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
