"""The processes of one run: how they find each other, wait for each other, agree, and print a line once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NoReturn

import jax
import numpy as np

from easylm_jax.runtime import processes
from models.errors import UserError


def is_first_process() -> bool:
    import jax

    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; nothing for one process."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree_any(here: bool) -> bool:
    """Whether it is true on any process; every process gets the same answer."""
    import jax

    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(here))))


def initialize_processes() -> None:
    """Join the other processes of this run, where there are any.

    On a TPU pod JAX finds them itself. Elsewhere `EASYLM_COORDINATOR` (host:port), `EASYLM_PROCESSES` and
    `EASYLM_PROCESS_ID` say who they are; with none of them set, this process runs alone.
    """
    names = ("EASYLM_COORDINATOR", "EASYLM_PROCESSES", "EASYLM_PROCESS_ID")
    given = [name for name in names if os.environ.get(name)]
    if given and len(given) < len(names):
        missing = ", ".join(sorted(set(names) - set(given)))
        raise UserError(f"several processes need {', '.join(names)} all set; missing: {missing}")
    if jax.distributed.is_initialized():
        return
    if given:
        count, index = _whole_number("EASYLM_PROCESSES"), _whole_number("EASYLM_PROCESS_ID")
        if not 0 <= index < count:
            raise UserError(f"EASYLM_PROCESS_ID must be between 0 and {count - 1}, not {index}")
        jax.distributed.initialize(os.environ["EASYLM_COORDINATOR"], num_processes=count, process_id=index)
    elif on_tpu_host(jax.config.jax_platforms, os.environ, find_spec("libtpu") is not None):
        try:
            jax.distributed.initialize()
        except (ValueError, OSError) as error:  # chips that are no part of a pod, and no server that tells of one
            print(f"easylm: this TPU host runs alone ({error})", file=sys.stderr)


def on_tpu_host(platforms: str | None, environment: Mapping[str, str], libtpu: bool) -> bool:
    """Whether this machine is one of those whose TPU chips make up a pod: Kubernetes names them all, a server of
    Google Cloud tells them when asked. That it must not be asked, for want of chips, JAX notes when it is imported."""
    if platforms and "tpu" not in platforms.split(","):
        return False
    if any("," in environment.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")):
        return True
    return libtpu and not environment.get("TPU_SKIP_MDS_QUERY")


def end_at_once(error: Exception) -> NoReturn:
    """Ends this process, one of several, over an error that the others may not share.

    To leave in the usual way would be to wait for the others, and they would wait for this one, for minutes. This way
    they see its connection close, and end too with status 75: worth starting again.
    """
    status = 1
    if isinstance(error, UserError):
        status = 2
        print(f"easylm: error: {' '.join(str(error).split())}", file=sys.stderr)
    elif any(text in str(error) for text in ("Connection closed by peer", "Connection reset by peer")):
        status = 75
        print("easylm: another process of this run has ended; what it printed last says why", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _whole_number(name: str) -> int:
    """The value of an environment variable that must be one."""
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name} must be a whole number, not {os.environ[name]!r}") from None


def log_once(text: str) -> None:
    """A line for the person who watches, once however many processes there are."""
    if processes.is_first_process():
        print(text, file=sys.stderr, flush=True)
