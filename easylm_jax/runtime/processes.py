"""The processes of a multi-host run: initialisation, barriers, agreement, and messages from the first process only."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from easylm_jax.runtime import barriers, exit_status
from easylm_jax.runtime.launch.worker import DUMP_SIGNAL
from models.errors import UserError

_PEER_LOST = ("Connection closed by peer", "Connection reset by peer")
_SERVICE_LOST = ("UNAVAILABLE", "CANCELLED", "ABORTED")  # with the process that runs JAX's coordination service


class Temporary(UserError):
    """A failure that may not come again when the run is started again; processes of a run end with status 75."""


def peer_lost(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that another process of the run has ended."""
    while error is not None:
        said = str(error)
        if any(text in said for text in _PEER_LOST):
            return True
        if "coordination" in said.lower() and any(text in said for text in _SERVICE_LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_first_process() -> bool:
    return jax.process_index() == 0


def barrier(name: str, seconds: float | None = None) -> None:
    """Waits until every process has reached this call; returns at once if there is only one.

    Past a deadline (`barriers.wait`) it says who is late, and all processes dump their stacks and end with status 75.
    """
    if jax.process_count() > 1 and not barriers.wait(name, seconds):
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree_any(here: bool) -> bool:
    """Whether `here` is true on any process; every process gets the same result."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(here))))


def agree_largest(here: int) -> int:
    """The largest `here` of all processes; every process gets the same result."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.array(here))))


def gather_bytes(here: bytes, members: Sequence[int] | None = None) -> list[bytes]:
    """The bytes that each of `members` (by default all processes) gives, in that order; each member gets the same
    result. Only members call it."""
    members = range(jax.process_count()) if members is None else members
    if len(members) == 1:
        return [here]
    size = int(_gather_rows(np.array([len(here)], np.uint32), members).max())
    row = np.zeros(4 + size, np.uint8)
    row[: 4 + len(here)] = np.frombuffer(len(here).to_bytes(4, "little") + here, np.uint8)
    rows = _gather_rows(row, members)
    return [bytes(one[4 : 4 + int.from_bytes(bytes(one[:4]), "little")]) for one in rows]


def _gather_rows(row: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """The row [n] of each member, [members, n], by way of one device of each."""
    mesh = _one_device_each(tuple(members))
    shares, everywhere = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (mesh.axis_names, ())
    )
    shape = (len(members), *row.shape)
    placed = jax.make_array_from_callback(shape, shares, lambda _: row[None], dtype=row.dtype)
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(_identity, out_shardings=everywhere)(placed).addressable_data(0))


@functools.cache
def _one_device_each(members: tuple[int, ...]) -> jax.sharding.Mesh:
    first: dict[int, jax.Device] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return jax.sharding.Mesh(np.array([first[member] for member in members]), ("processes",))


def _identity(x: jax.Array) -> jax.Array:
    return x


def broadcast_bytes(here: bytes | None, source: int) -> bytes:
    """The bytes that process `source` gives, on every process; all call it."""
    if jax.process_count() == 1:
        assert here is not None
        return here
    from jax.experimental import multihost_utils

    own = jax.process_index() == source
    here = here if own and here is not None else b""
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(here)), is_source=own))
    step = max(1024, 1 << max(0, size.bit_length() - 3))  # few sizes, so that few programs are compiled
    words = np.zeros(-(-size // step) * step // 4, np.uint32)  # sums of smaller integers would be widened
    words.view(np.uint8)[: len(here)] = np.frombuffer(here, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(words, is_source=own)).tobytes()[:size]


def of_mesh(mesh: jax.sharding.Mesh) -> tuple[int, ...]:
    """The processes that have devices of a mesh, ascending."""
    return tuple(sorted({device.process_index for device in mesh.devices.flat}))


def require_shared_folder(folder: Path) -> None:
    """Checks that every process sees what the first one writes in `folder`, which is created if needed.

    Raises:
        UserError: on every process, if it is a folder of its own on one of them.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    token = int.from_bytes(os.urandom(4), "big") if is_first_process() else 0
    token = int(multihost_utils.broadcast_one_to_all(np.uint32(token)))
    probe = folder / f".shared-{token}"
    if is_first_process():
        with contextlib.suppress(OSError):  # the run itself reports a folder that cannot be written
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
    barrier("shared folder written")
    missing = agree_any(not probe.exists()) if not agree_any(is_first_process() and not probe.exists()) else False
    barrier("shared folder looked at")
    if is_first_process():
        probe.unlink(missing_ok=True)
    if missing:
        raise UserError(
            f"{folder.absolute()} is not the same folder on all {jax.process_count()} processes; mount a bucket or NFS "
            "on every host (tpu_scripts/setup.sh --mount) and write to it with --out"
        )


def initialize_processes() -> None:
    """Connects to the other processes of this run, if there are any, and dumps stacks on request from now on.

    On a TPU pod JAX discovers them. Elsewhere set `EASYLM_COORDINATOR` (host:port), `EASYLM_PROCESSES` and
    `EASYLM_PROCESS_ID`; with none of them set, this process runs alone.

    Raises:
        UserError: only some of these variables are set, or one is not a valid number.
    """
    # Its handler needs no interpreter, so that a process that hangs still answers. It writes to a file descriptor,
    # which the standard error that a notebook puts in place does not have.
    if sys.__stderr__ is not None:
        faulthandler.register(DUMP_SIGNAL, file=sys.__stderr__, all_threads=True)
    names = ("EASYLM_COORDINATOR", "EASYLM_PROCESSES", "EASYLM_PROCESS_ID")
    given = [name for name in names if os.environ.get(name)]
    if given and len(given) < len(names):
        missing = ", ".join(sorted(set(names) - set(given)))
        raise UserError(f"several processes need {', '.join(names)} all set; missing: {missing}")
    _connect(bool(given))
    barriers.join()


def _connect(given: bool) -> None:
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
        except (ValueError, OSError) as error:  # the chips do not belong to a pod, or there is no metadata server
            print(f"easylm: this TPU host runs alone ({error})", file=sys.stderr)


def on_tpu_host(platforms: str | None, environment: Mapping[str, str], libtpu: bool) -> bool:
    """Whether this machine is a host of a TPU pod: Kubernetes lists the hosts in environment variables, Google Cloud's
    metadata server returns them on request. JAX sets `TPU_SKIP_MDS_QUERY` on import if the machine has no TPU chips."""
    if platforms and "tpu" not in platforms.split(","):
        return False
    if any("," in environment.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")):
        return True
    return libtpu and not environment.get("TPU_SKIP_MDS_QUERY")


def end_at_once(error: Exception, as_user_error: int = exit_status.USER_ERROR) -> NoReturn:
    """Exits this process of a multi-process run at once, after an error that other processes may not have.

    A normal exit would wait for the other processes, and they for this one, for minutes. An immediate exit closes its
    connections, so that the others exit too, with status 75 (temporary failure: restart the run). An error of the user
    ends with `as_user_error`.
    """
    status = exit_status.FAILED
    if isinstance(error, UserError):
        status = exit_status.TEMPORARY if isinstance(error, Temporary) else as_user_error
        print(f"easylm: error: {' '.join(str(error).split())}", file=sys.stderr)
    elif peer_lost(error):
        status = exit_status.TEMPORARY
        print("easylm: another process of this run has ended; see its last output for the reason", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _whole_number(name: str) -> int:
    """The value of an environment variable as an integer."""
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name} must be a whole number, not {os.environ[name]!r}") from None


def log_once(text: str) -> None:
    """Prints a line to stderr, on the first process only."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)
