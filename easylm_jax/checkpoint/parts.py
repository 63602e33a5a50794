"""Parts of a state as files on a host's own disk: what one process holds of it, with checksums, readable on any mesh.

    "EASYLM\\n"  header's length and CRC-32 (two unsigned 32-bit numbers)  header (JSON)  arrays, one behind another

The header names the step, the process, the number of processes, the metadata of a checkpoint, and for every array its
name, dtype, whole shape, the block of it that follows, and the CRC-32 of that block.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.checkpoint.store import stored_dtype
from easylm_jax.runtime.files import atomic_write
from models.reading import Damaged

MAGIC = b"EASYLM\n"
_SIZES = struct.Struct("<II")
_LARGEST_HEADER = 1 << 28
_MEND = "another copy or an earlier step is used"


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of an array: `start` to `stop` in every dimension of an array of `shape`.

    `offset` and `crc` are those of its bytes in a file; `data` is given where the block is to be written.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    offset: int = 0
    crc: int = 0
    data: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * stored_dtype(self.dtype).itemsize

    @property
    def count(self) -> int:
        return math.prod(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclasses.dataclass(frozen=True)
class Part:
    """The header of a file: the part of process `process` of `count`."""

    path: Path
    step: int
    process: int
    count: int
    meta: dict[str, Any]
    blocks: tuple[Block, ...]

    def read(self, block: Block) -> np.ndarray:
        """The array of a block, compared with its checksum."""
        try:
            with open(self.path, "rb") as file:
                file.seek(block.offset)
                data = file.read(block.size)
        except OSError as error:
            raise Damaged(self.path, f"it cannot be read ({error.strerror})", _MEND) from error
        if len(data) != block.size or zlib.crc32(data) != block.crc:
            raise Damaged(self.path, f"{block.name} has changed since it was written", _MEND)
        shape = [stop - start for start, stop in zip(block.start, block.stop, strict=True)]
        return np.frombuffer(data, stored_dtype(block.dtype)).reshape(shape)


def blocks_of(leaves: dict[str, Any], process: int) -> list[Block]:
    """Copies of the blocks of a state that this process answers for: of shards on several devices, one has them."""
    import jax

    found = []
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array):
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    found.append(_block(name, leaf.shape, shard.index, np.array(shard.data)))
        elif process == 0:
            whole = np.array(leaf)
            found.append(_block(name, whole.shape, (slice(None),) * whole.ndim, whole))
    return found


def _block(name: str, shape: Sequence[int], index: Sequence[slice], data: np.ndarray) -> Block:
    ranges = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    start, stop = tuple(first for first, _, _ in ranges), tuple(last for _, last, _ in ranges)
    return Block(name, data.dtype.name, tuple(shape), start, stop, data=np.ascontiguousarray(data))


def write_part(path: Path, step: int, process: int, count: int, blocks: Iterable[Block], meta: dict[str, Any]) -> int:
    """Writes a part whole: under another name, synced, then renamed. Returns its bytes."""
    entries, arrays, offset = [], [], 0
    for block in blocks:
        assert block.data is not None
        data = block.data.reshape(-1).view(np.uint8).data
        entries.append([block.name, block.dtype, block.shape, block.start, block.stop, offset, zlib.crc32(data)])
        arrays.append(data)
        offset += len(data)
    header = json.dumps({"step": step, "process": process, "count": count, "meta": meta, "blocks": entries}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(MAGIC + _SIZES.pack(len(header), zlib.crc32(header)) + header)
        for data in arrays:
            file.write(data)
        return file.tell()


def read_part(path: Path) -> Part:
    """The header of a part's file.

    Raises:
        Damaged: it cannot be read, is cut, or has changed since it was written.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(len(MAGIC) + _SIZES.size)
            if len(begin) < len(MAGIC) + _SIZES.size or not begin.startswith(MAGIC):
                raise Damaged(path, "it is no part of a state", _MEND)
            size, crc = _SIZES.unpack(begin[len(MAGIC) :])
            header = file.read(min(size, _LARGEST_HEADER))
    except OSError as error:
        raise Damaged(path, f"it cannot be read ({error.strerror})", _MEND) from error
    if len(header) != size or zlib.crc32(header) != crc:
        raise Damaged(path, "its header has changed since it was written", _MEND)
    value = json.loads(header)
    base = len(begin) + size
    blocks = tuple(
        Block(name, dtype, tuple(shape), tuple(start), tuple(stop), base + offset, crc)
        for name, dtype, shape, start, stop, offset, crc in value["blocks"]
    )
    return Part(path, value["step"], value["process"], value["count"], value["meta"], blocks)


def is_whole(path: Path) -> bool:
    """Whether every block of a part is as it was written."""
    try:
        part = read_part(path)
        for block in part.blocks:
            part.read(block)
    except Damaged:
        return False
    return True


def assemble(name: str, shape: Sequence[int], index: Sequence[slice], found: Sequence[tuple[Part, Block]]) -> Any:
    """A block of an array from the blocks of all parts, however they cut it.

    Raises:
        Damaged: a part of it is in none of them.
    """
    ranges = [one.indices(size)[:2] for one, size in zip(index, shape, strict=True)]
    own = [(part, block) for part, block in found if block.name == name and block.shape == tuple(shape)]
    if not own:
        raise Damaged(Path(name), f"no part holds {name} of shape {tuple(shape)}", _MEND)
    result = np.empty([stop - start for start, stop in ranges], stored_dtype(own[0][1].dtype))
    filled = 0
    for part, block in own:
        overlap = [
            (max(a, start), min(b, stop))
            for (a, b), start, stop in zip(ranges, block.start, block.stop, strict=True)
        ]  # fmt: skip
        if all(low < high for low, high in overlap):
            source = tuple(slice(low - at, high - at) for (low, high), at in zip(overlap, block.start, strict=True))
            target = tuple(slice(low - at, high - at) for (low, high), (at, _) in zip(overlap, ranges, strict=True))
            result[target] = part.read(block)[source]
            filled += math.prod(high - low for low, high in overlap)
    if filled != result.size:
        raise Damaged(Path(name), f"the parts hold only {filled} of {result.size} numbers of {name}", _MEND)
    return result
