"""Encodes records about pictures: one copy of a picture's tokens, then each text about it, apart from the others.

    <bos> picture tokens | annotation 1 <eos> | annotation 2 <eos> | …        one document of a row

Pixels are not stored: a cache names the files, and `picture_store` reads them for each batch. Beside the columns of
text, a row has `branches` uint8 [S] (0 for the picture, k for the k-th annotation; 0 throughout for a single one) and
`pictures` int32 [documents], the line of each document in the file

    pictures.jsonl         {"source", "record", "images": [{"path", "height", "width"}], "weight"}, one a document
"""

from __future__ import annotations

import array
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import packing, picture_records, templates
from easylm_jax.data.examples import Counts, Encoder, Example, template_of
from easylm_jax.data.records import BadRecord, Record
from easylm_jax.data.tokenizer import Tokenizer
from models.config import VisionConfig
from models.molmo import decode
from models.molmo.image import Layout, layout

MOST_ANNOTATIONS = 255  # of one document


@dataclasses.dataclass(frozen=True)
class _Item:
    """A record before its texts are tokens: its pictures' files, sizes and layouts, and its conversations."""

    images: list[dict[str, Any]]
    layouts: list[Layout]
    rendered: list[list[templates.Piece]]
    weight: float


class PictureLines:
    """The file `pictures.jsonl` of a build, and how many crops and patch tokens the pictures of each line have."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._file = None if folder is None else open(folder / "pictures.jsonl", "wb")  # noqa: SIM115 - see `close`
        self._offsets, self._crops, self._places = (array.array("q", start) for start in ([0], [], []))

    def add(self, source: int, record: int, note: Mapping[str, Any]) -> None:
        """Writes the line of the next document; `note` has its images, weight, crops and places."""
        assert self._file is not None
        line = {"source": source, "record": record, "images": note["images"], "weight": note["weight"]}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._offsets.append(self._file.tell())
        self._crops.append(note["crops"])
        self._places.append(note["places"])

    @property
    def crops(self) -> np.ndarray:
        """Crops of each line, int64 [lines]."""
        return np.array(self._crops, np.int64)

    def finish(self) -> None:
        """Closes the file and writes `picture_offsets.npy`."""
        assert self.folder is not None
        self.close()
        np.save(self.folder / "picture_offsets.npy", np.array(self._offsets, np.int64))

    def facts(self, rows: np.ndarray, lines: np.ndarray, copies: int = 1) -> dict[str, int]:
        """The most crops and patch tokens of a row, from the row and the line of each document; int64 [n].

        `copies`: how often the tokens of a line's pictures stand in its row. Their crops are in a batch once.
        """
        most = [int(np.bincount(rows, np.array(a, np.int64)[lines]).max()) for a in (self._crops, self._places)]
        return {"crops": sum(self._crops), "row_crops": max(1, most[0]), "row_patch_tokens": max(1, copies * most[1])}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class PictureEncoder(Encoder):
    """Encodes pictures with their annotations; a record may become several documents, each with the picture."""

    has_notes = True

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, folder: Path | None = None):
        super().__init__(spec, tokenizer, folder)
        assert spec.vision is not None, "checked by DataSpec"
        self.vision = spec.vision
        self.captions = spec.template == "molmo_caption"
        self.lines = PictureLines(folder)
        self._branches: list[np.ndarray] = []

    def stored(self, example: Example, source: int) -> None:
        self.lines.add(source, example.document, example.note)
        self._branches.append(np.array(example.note["branches"], np.int64))

    def plan(self, lengths: np.ndarray, units: np.ndarray) -> packing.Plan:
        """Packs documents by tokens and, where `row_crops` bounds them, by crops."""
        if self.spec.packing == "none":
            plan = packing.one_each(lengths[units], self.spec.sequence_length)
        else:
            crops = self.lines.crops[units]
            plan = packing.best_fit(lengths[units], self.spec.sequence_length, extra=crops, room=self.spec.row_crops)
        return dataclasses.replace(plan, document=units[plan.document])

    def columns(self, plans: Sequence[packing.Plan]) -> dict[str, tuple[np.ndarray, str]]:
        self.lines.finish()
        per_row = np.concatenate([np.diff(plan.row_offsets()) for plan in plans])
        documents = np.concatenate([plan.document for plan in plans])
        starts = np.concatenate([plan.start for plan in plans])
        rows = np.repeat(np.arange(len(per_row)), per_row)
        index = np.full((len(per_row), per_row.max()), -1, np.int32)
        index[rows, packing.within(per_row)] = documents
        branches = np.zeros((len(per_row), self.spec.sequence_length), np.uint8)
        for row, start, document in zip(rows, starts, documents, strict=True):
            own = self._branches[document]
            at = start + np.cumsum(own[:-1])
            if len(own) > 2:
                numbers = np.repeat(np.arange(1, len(own), dtype=np.uint8), own[1:])
                branches[row, at[0] : at[0] + len(numbers)] = numbers
        self._row = self.lines.facts(rows, documents)
        return {
            "branches": (branches, "number of the annotation of each token, 0 for those of pictures"),
            "pictures": (index, "line of pictures.jsonl of each document, -1 where there is none"),
        }

    def facts(self) -> dict[str, Any]:
        return {"documents": len(self._branches), **self._row, "id_limit": id_limit(self.vision, self.tokenizer)}

    def close(self) -> None:
        self.lines.close()

    def _item(self, record: Record, source: Source, where: str, counts: Counts) -> Any:
        rng = random.Random(f"{self.spec.seed}/{json.dumps(record, sort_keys=True, default=str)}")
        images, layouts = images_of(record, source, self.spec, where)
        talks = picture_records.annotations_of(record, captions=self.captions, rng=rng, where=where)
        weight = record.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e6:
            raise BadRecord(f"{where}: weight is {str(weight)[:40]!r}, not a number from 0 on")
        rendered = [templates.render(template_of(self.spec), talk, train_on=self.spec.train_on) for talk in talks]
        return _Item(images, layouts, rendered, float(weight))

    def _tokens(self, items: list[Any]) -> list[Any]:
        encoded = templates.tokenize([talk for item in items for talk in item.rendered], self.tokenizer)
        found, at = [], 0
        for item in items:
            found.append((item, encoded[at : at + len(item.rendered)]))
            at += len(item.rendered)
        return found

    def _admit(self, tokens: Any, document: int, where: str, counts: Counts) -> list[Example]:
        item, talks = tokens
        first = talks[0][0][:1]  # the template's BOS, which every conversation begins with
        prefix = np.concatenate([first, *(found.tokens for found in item.layouts)]).astype(np.int32)
        room = self.spec.longest - len(prefix)
        crops, most = sum(found.crops for found in item.layouts), self.spec.row_crops
        if room < 2 or (most is not None and crops > most):
            what = f"{len(prefix)} tokens and {crops} crops of pictures, over sequence_length "
            what = f"{where}: {what}{self.spec.longest}" + ("" if most is None else f" or row_crops {most}")
            if self.spec.overlong == "error":
                raise BadRecord(f"{what}; raise it, lower max_crops, or choose another overlong than 'error'")
            counts.overlong_dropped += 1
            return []
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        for ids, marks in talks:
            ids, marks = ids[1:], marks[1:]
            if len(ids) > room:
                if not self._may_cut(f"{where}: an annotation of {len(ids)} tokens where {room} fit", counts):
                    continue
                ids, marks = ids[:room], marks[:room]
            if marks.any():
                kept.append((ids, marks))
            else:
                counts.untrained_dropped += 1
        return [self._example(item, prefix, group, document) for group in _groups(kept, room)]

    def _example(self, item: _Item, prefix: np.ndarray, talks: list[tuple], document: int) -> Example:
        ids = np.concatenate([prefix, *(ids for ids, _ in talks)])
        marks = np.concatenate([np.zeros(len(prefix), np.uint8), *(marks for _, marks in talks)])
        note = {
            **note_of(item.images, item.layouts, item.weight),
            "branches": [len(prefix), *(len(ids) for ids, _ in talks)],
        }  # fmt: skip
        return Example(ids, marks, document, note)


def note_of(images: list[dict[str, Any]], layouts: Sequence[Layout], weight: float = 1.0) -> dict[str, Any]:
    """What `PictureLines.add` writes of the pictures of a document."""
    return {
        "images": images, "weight": weight, "crops": sum(found.crops for found in layouts),
        "places": sum(len(found.patch_at) for found in layouts),
    }  # fmt: skip


def too_many_crops(crops: int, spec: DataSpec, where: str, counts: Counts) -> bool:
    """Whether a document's pictures have more crops than `row_crops`; counts it as left out.

    Raises `BadRecord` with `overlong="error"`.
    """
    if spec.row_crops is None or crops <= spec.row_crops:
        return False
    if spec.overlong == "error":
        raise BadRecord(f"{where}: pictures of {crops} crops, over row_crops {spec.row_crops}; raise it or max_crops")
    counts.overlong_dropped += 1
    return True


def behind_start(ids: np.ndarray, marks: np.ndarray, layouts: Sequence[Layout]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss marks of a text with the tokens of pictures behind its first token, the template's BOS."""
    if not layouts:
        return ids, marks
    seen = np.concatenate([layout.tokens for layout in layouts]).astype(np.int32)
    blank = np.zeros(len(seen), marks.dtype)
    return np.concatenate([ids[:1], seen, ids[1:]]), np.concatenate([marks[:1], blank, marks[1:]])


def images_of(record: Record, source: Source, spec: DataSpec, where: str) -> tuple[list[dict[str, Any]], list[Layout]]:
    """The pictures of a record, as files with their sizes, and their layouts; only headers are read."""
    assert spec.vision is not None, "checked by DataSpec"
    root = Path(spec.images) if spec.images else _root(source)
    images, layouts = [], []
    for path in picture_records.paths_of(record, root, where):
        try:
            height, width = decode.size_of(path)
        except decode.BadPicture as error:
            raise BadRecord(f"{where}: {error}") from None
        images.append({"path": path, "height": height, "width": width})
        layouts.append(layout(height, width, spec.max_crops or spec.vision.max_crops, spec.vision))
    return images, layouts


def id_limit(vision: VisionConfig, tokenizer: Tokenizer) -> int:
    """One more than the largest id: those of pictures' tokens may lie behind the tokenizer's."""
    return max(tokenizer.vocab_size, 1 + max(vision.start_id, vision.end_id, vision.patch_id, vision.column_id))


def _groups(talks: list[tuple], room: int) -> list[list[tuple]]:
    """The annotations in as few groups as their order gives, each of at most `room` tokens."""
    groups: list[list[tuple]] = []
    left = 0
    for talk in talks:
        if not groups or len(talk[0]) > left or len(groups[-1]) == MOST_ANNOTATIONS:
            groups.append([])
            left = room
        groups[-1].append(talk)
        left -= len(talk[0])
    return groups


def _root(source: Source) -> Path:
    """The folder that paths of pictures are relative to: that of the source's files."""
    path = Path(source.path).expanduser()
    return path if path.is_dir() else path.parent
