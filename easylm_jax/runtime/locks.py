"""Locks between processes: whoever holds one is named in its file, and the kernel releases it when that process dies.

The locks are those of flock(2). They hold between the processes of one host on every local disk, and between hosts on
NFS (version 4, or 3 with its lock service), GPFS, CephFS and Lustre mounted with `flock`. On Lustre mounted with
`localflock`, on NFS mounted with `nolock` or `local_lock`, and on most FUSE mounts of buckets, a lock holds only
between the processes of one host. Where a file system has no locks at all, `locked` yields False.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_POLL_SECONDS = 0.2


class Locked(Exception):
    """Another process holds the lock. `owner` is that process as text, such as "process 4711 on node-3"."""

    def __init__(self, owner: str):
        super().__init__(owner)
        self.owner = owner


@contextlib.contextmanager
def locked(path: Path, timeout: float = 0.0) -> Iterator[bool]:
    """Holds an exclusive lock on the file `path`, which is created if needed and never deleted.

    Args:
        path: the lock's file; its folder must exist.
        timeout: seconds to wait for another holder.

    Yields:
        True; False if the file system has no locks, so that nothing is held.

    Raises:
        Locked: another process holds the lock, and did so for `timeout` seconds.
        OSError: the file cannot be opened.
    """
    deadline = time.monotonic() + timeout
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        while not (taken := _try_lock(file)):
            if taken is None:
                yield False
                return
            if time.monotonic() >= deadline:
                raise Locked(_owner(file))
            time.sleep(_POLL_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield True
        finally:
            file.truncate(0)


def _try_lock(file: TextIO) -> bool | None:
    """Whether the lock could be taken; None if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN) else None
    return True


def _owner(file: TextIO) -> str:
    """Who holds the lock; waits a moment for a process that has taken it and not yet written its name."""
    for _ in range(5):
        file.seek(0)
        text = " ".join(file.read(200).split())
        if text:
            return text
        time.sleep(_POLL_SECONDS)
    return "another process"
