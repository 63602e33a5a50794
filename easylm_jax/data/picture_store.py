"""Reads the pictures of batches: files to crops, by worker processes where there are cores for them.

A cache of pictures names files with the sizes that its tokens were laid out for. A file that is gone, or has another
size now, ends the run with one line: its features would land on the wrong tokens.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from models import reading
from models.config import BRANCH, VisionConfig
from models.errors import UserError
from models.molmo.batch import collate
from models.molmo.image import TokenizedImage, tokenize

KEPT_BYTES = 256 << 20  # of crops that are kept for the next epoch; enough for a small set of small pictures
MEND = "delete the folder and build the cache again"


class _Image(TypedDict):
    path: str
    height: int
    width: int


class _Line(TypedDict):
    source: int
    record: int
    images: list[_Image]
    weight: float


class PictureReader:
    """Reads the files of pictures as a specification of data says; those read last are kept."""

    def __init__(self, folder: Any, spec: Mapping[str, Any]):
        self.folder, self.vision = folder, vision_of(spec["vision"])
        self.max_crops = spec["max_crops"] or self.vision.max_crops
        self._kept: dict[str, TokenizedImage] = {}
        self._bytes = 0

    def pictures(self, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[TokenizedImage]]:
        """The pictures of rows of files `{"path", "height", "width"}`.

        Raises:
            UserError: a file cannot be read, or its picture has another size.
        """
        found = self._read(list(dict.fromkeys(image["path"] for row in rows for image in row)))
        for image in (image for row in rows for image in row):
            self._check(image, found[image["path"]])
        return [[found[image["path"]] for image in row] for row in rows]

    def _check(self, image: Mapping[str, Any], found: TokenizedImage) -> None:
        if found.size != (image["height"], image["width"]):
            raise UserError(
                f"picture {image['path']} is {found.size[1]} × {found.size[0]} now, and was {image['width']} × "
                f"{image['height']} when cache {self.folder} was built; restore the file or build the cache again"
            )

    def _read(self, names: Sequence[str]) -> dict[str, TokenizedImage]:
        """The pictures of these files; those read last are kept."""
        found = {name: self._kept[name] for name in names if name in self._kept}
        missing = [name for name in names if name not in found]
        read = functools.partial(_tokenized, max_crops=self.max_crops, vision=self.vision)
        workers = _workers()
        read_now: Iterable[TokenizedImage] = map(read, missing)
        if len(missing) >= 8 and workers > 1:
            read_now = _pool(workers).map(read, missing, chunksize=max(1, len(missing) // (4 * workers)))
        for name, picture in zip(missing, read_now, strict=True):
            found[name] = picture
            if self._bytes + picture.crops.nbytes <= KEPT_BYTES:
                self._kept[name] = picture
                self._bytes += picture.crops.nbytes
        return found


class PictureStore:
    """The columns of a cache of pictures that are computed for each batch: those of `models.model.Images`, and the
    segments, positions and loss weights of several annotations behind one picture."""

    arrays: Mapping[str, np.ndarray] = {}

    def __init__(self, folder: Any, manifest: Mapping[str, Any]):
        spec = manifest["spec"]
        self.folder, self.manifest, self.reader = folder, manifest, PictureReader(folder, spec)
        self.root_weights = spec["annotation_weight"] == "root"
        self._offsets = reading.read_array(folder / "picture_offsets.npy", mend=MEND)
        self._text = np.memmap(folder / "pictures.jsonl", np.uint8, "r")

    def check(self, cache: Any) -> None:
        """Nothing to compare: the store is a part of its cache."""

    def line(self, number: int) -> dict[str, Any]:
        """The pictures and the weight of a document."""
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return reading.parse_json(self._text[begin:end].tobytes(), _Line, self.folder / "pictures.jsonl", mend=MEND)

    def gather(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns of one batch."""
        lines = [[self.line(int(n)) for n in row if n >= 0] for row in batch["pictures"]]
        weights = [[line["weight"] for line in row] for row in lines]
        images = self._images(batch["tokens"], [[image for line in row for image in line["images"]] for row in lines])
        return {**images, **self._branched(batch, weights)}

    def _images(self, tokens: np.ndarray, rows: list[list[_Image]]) -> dict[str, np.ndarray]:
        """The columns of `models.model.Images` for rows of tokens with these files."""
        images = collate(
            tokens, self.reader.pictures(rows), self.reader.vision, crops=self.manifest["row_crops"],
            patch_tokens=self.manifest["row_patch_tokens"],
        )  # fmt: skip
        return images._asdict()

    def _branched(self, batch: Mapping[str, np.ndarray], weights: list[list[float]]) -> dict[str, np.ndarray]:
        """Segments and positions of annotations behind a shared picture, and the weights of their tokens."""
        segments, branches = batch["segment_ids"].copy(), batch["branches"].astype(np.int32)
        positions, scale = batch["positions"].copy(), np.ones_like(batch["loss_weights"])
        for row, own in enumerate(weights):
            for number, weight in enumerate(own, start=1):
                inside = np.flatnonzero(batch["segment_ids"][row] == number)
                kinds = branches[row, inside]
                count = int(kinds.max(initial=0))
                scale[row, inside] = weight / np.sqrt(count) if self.root_weights and count > 1 else weight
                if count:
                    shared = int((kinds == 0).sum())
                    first = np.searchsorted(kinds, kinds)  # of each token's own annotation
                    positions[row, inside] = np.where(kinds == 0, np.arange(len(inside)),
                                                      shared + np.arange(len(inside)) - first)  # fmt: skip
        return {
            "segment_ids": np.where(segments > 0, segments + BRANCH * branches, 0).astype(np.int32),
            "positions": positions,
            "loss_weights": batch["loss_weights"] * scale,
        }


class PairPictureStore(PictureStore):
    """The pictures of pairs, whose tokens stand in both sides; the crops of a pair are in a batch once."""

    def gather(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        lines = [[self.line(int(n)) for n in row if n >= 0] for row in batch["pair_index"]]
        rows = [[image for line in row for _ in ("chosen", "rejected") for image in line["images"]] for row in lines]
        return self._images(batch["tokens"], rows)


@functools.lru_cache(maxsize=8)
def _reader(folder: Any, spec: str) -> PictureReader:
    return PictureReader(folder, json.loads(spec))


def prompt_pictures(cache: Any, numbers: Iterable[int]) -> list[list[TokenizedImage]] | None:
    """The pictures of prompts of a cache by number (`prompt_index`); None where its prompts have none."""
    spec = cache.manifest["spec"]
    if spec.get("vision") is None:
        return None
    reader = _reader(cache.folder, json.dumps({name: spec[name] for name in ("vision", "max_crops")}))
    return reader.pictures([cache.record(int(number))["_images"] if number >= 0 else [] for number in numbers])


def _tokenized(name: str, max_crops: int, vision: VisionConfig) -> TokenizedImage:
    return tokenize(name, max_crops, vision)


def _workers() -> int:
    """Processes that read pictures: half of the cores, up to 32; fewer than two where training needs them itself."""
    return min(32, len(os.sched_getaffinity(0)) // 2)


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def vision_of(fields: Mapping[str, Any] | VisionConfig) -> VisionConfig:
    """A vision configuration from its fields in JSON."""
    if isinstance(fields, VisionConfig):
        return fields
    return VisionConfig(**{**fields, "features": tuple(fields["features"])})
