"""Buckets as folders: `gs://BUCKET/PATH` is read and written where Cloud Storage FUSE has mounted the bucket.

Run folders need appends, renames and locks of files, which a mounted bucket has and plain object storage has not.
Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = "/proc/self/mounts"


class NotMountedError(ValueError):
    """A bucket is not a folder of this host; the message says how to mount it."""


def local_path(text: str, mounts: str = MOUNTS) -> str:
    """The path that a text names on this host.

    `gs://BUCKET/PATH` is the path below the folder where the bucket is mounted; any other text is a path already.
    Where only a folder of the bucket is mounted, the file `<mount point>.source`, which `tpu_scripts/setup.sh` writes,
    names it as `gs://BUCKET/FOLDER`.

    Args:
        text: a path or `gs://BUCKET[/PATH]`.
        mounts: the list of mounts, in the format of Linux.

    Raises:
        NotMountedError: the bucket is not mounted, only another folder of it is, or the text is of another kind of
            storage.
    """
    if "://" not in text:
        return text
    if not text.startswith("gs://"):
        raise NotMountedError(f"{text} is no folder; give a folder or gs://BUCKET/PATH")
    bucket, _, path = text.removeprefix("gs://").partition("/")
    parts = [part for part in path.split("/") if part]
    if not bucket or ".." in parts:
        raise NotMountedError(f"{text} is no folder of a bucket; give gs://BUCKET/PATH")
    others = []
    for point in _mount_points(bucket, mounts):
        source = Path(f"{point}.source")
        mounted = source.read_text().strip() if source.is_file() else f"gs://{bucket}"
        folder = [part for part in mounted.removeprefix("gs://").split("/")[1:] if part]
        if parts[: len(folder)] == folder:
            return str(Path(point, *parts[len(folder) :]))
        others.append(mounted)
    if others:
        raise NotMountedError(f"{text} cannot be reached: of the bucket only {others[0]} is mounted on this host")
    raise NotMountedError(
        f"{text} cannot be reached: the bucket {bucket} is not mounted on this host; mount it on every host "
        f"(tpu_scripts/setup.sh --mount gs://{bucket}, or gcsfuse {bucket} FOLDER)"
    )


def _mount_points(bucket: str, mounts: str) -> list[str]:
    """Folders where FUSE has mounted a bucket, the latest mount first."""
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:  # no Linux
        return []
    rows = [line.split(" ") for line in lines]
    found = [row[1] for row in rows if len(row) > 2 and row[0] == bucket and row[2].startswith("fuse")]
    # A space is written as \040.
    return [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point) for point in reversed(found)]
