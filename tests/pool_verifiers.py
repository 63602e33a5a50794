"""Verifiers that misbehave when the response tells them to, for tests of the pool."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from easylm_jax.rewards import Explained
from models.errors import UserError


def obey(response, record):
    """1, or what the response says: to hang, to die, to print, ..."""
    if response == "hang in C":
        re.match(r"(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock for years
    elif response == "wait":
        time.sleep(record["seconds"])
    elif response == "work":
        end = time.process_time() + record["seconds"]
        while time.process_time() < end:
            pass
    elif response == "sleep":
        time.sleep(1000)
    elif response == "exit":
        os._exit(3)
    elif response == "sys.exit":
        sys.exit(3)
    elif response == "memory":
        bytearray(1 << 45)
    elif response == "print":
        print("noise" * 1000, flush=True)
        os.write(1, b"\x02" * 1000)
        sys.stdin.read()
    elif response == "killed once" and not Path(record["marker"]).exists():
        Path(record["marker"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif response == "start another":
        child = subprocess.Popen(["sleep", "1000"])
        Path(record["marker"]).write_text(str(child.pid))
        time.sleep(1000)
    elif response == "complain":
        raise UserError(f"record {record['number']} is wrong")
    elif response == "modules":
        return float("jax" in sys.modules) + float("pytest" in sys.modules)
    elif response == "pid":
        return float(os.getpid())
    return 1.0


def length(response, record, times=1):
    return float(len(response) * times + record.get("more", 0))


def needs_warmth(response, record):
    return float(_warm)


def _warm_up():
    global _warm
    obey("work", {"seconds": 0.5})  # longer than the limit of the test that uses it
    _warm = True


_warm = False
needs_warmth.warm_up = _warm_up


def cannot_start(response, record):
    return 1.0


cannot_start.warm_up = lambda: os._exit(7)


def explain(response, record):
    """The length of a response, and a reason where it is short."""
    return Explained(len(response), f"only {len(response)}") if len(response) < 3 else len(response)
