"""Preference pairs: two responses to one prompt, packed into one row so that one forward pass computes both.

Pair p of a row has its chosen side in segment 2p + 1 and its rejected side in segment 2p + 2. The column `pair_index`
[rows, P] is the index of the pair in the data set (-1: no pair), `margins` [rows, P] the margin by which the chosen
side is better (0 where the data have none). A pair that is sampled several times keeps its index, so that values
computed once for each pair (reference log-probabilities) are stored by this index.

Where prompts have pictures (`DataSpec.vision`), their tokens stand behind the first token of both sides, and line p of
`pictures.jsonl` names the files of pair p.
"""

from __future__ import annotations

import array
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.config.data import DataSpec, Source
from easylm_jax.data import filters, packing, pictures, templates
from easylm_jax.data.examples import (
    Counts,
    Encoder,
    Example,
    check_roles,
    checked_text,
    column_of,
    messages_in,
    nothing_trained,
    template_of,
)
from easylm_jax.data.records import BadRecord, Record
from easylm_jax.data.tokenizer import Tokenizer
from models.molmo.image import Layout

Messages = list[dict[str, str]]
_LARGEST_MARGIN = float(np.finfo(np.float32).max)
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def holds_pairs(record: Record, source: Source) -> bool:
    """Whether a record is a pair: by the source's `fields` or `format`, or by its columns chosen and rejected."""
    named = {role for role, _ in source.columns}
    found = source.fields is None and "chosen" in record and "rejected" in record
    return source.format == "hh" or "chosen" in named or found


def texts_of(record: Record, source: Source, where: str) -> Iterator[str]:
    """All texts of a pair, also of an invalid one; turns that both sides share are yielded once."""
    chosen, rejected = _read_sides(record, source, where)
    same = first_difference(chosen, rejected)
    yield from (message["content"] for message in [*chosen, *rejected[same:]])


def sides_of(record: Record, source: Source, where: str) -> tuple[Messages, Messages]:
    """The two conversations (chosen, rejected) of a pair, prompt included.

    The columns are lists of messages (whole conversations, or responses to the column prompt), two texts that respond
    to the prompt (a text or a list of messages), or Human/Assistant transcripts (`format="hh"`).

    Raises:
        BadRecord: a side does not end with an assistant turn, or the sides have different prompts.
    """
    chosen, rejected = _read_sides(record, source, where)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            raise BadRecord(
                f"{where}: {name} ends with a {side[-1]['role']} turn; both sides must end with an assistant turn"
            )
    _check_prompts(chosen, rejected, where)
    return chosen, rejected


def _read_sides(record: Record, source: Source, where: str) -> tuple[Messages, Messages]:
    columns = dict(source.columns)
    names = [columns.get(side, side) for side in ("chosen", "rejected")]
    values = [column_of(record, name, where) for name in names]
    if source.format == "hh":
        chosen, rejected = (transcript(v, name, where) for v, name in zip(values, names, strict=True))
        same = first_difference(chosen, rejected)
        # In a few pairs the conversations continue after the first different turn; they end with it here.
        chosen, rejected = chosen[: same + 1], rejected[: same + 1]
    else:
        prompt = _prompt(record, columns, where)
        chosen, rejected = (_side(v, name, prompt, where) for v, name in zip(values, names, strict=True))
    if "system" in columns and (system := checked_text(column_of(record, columns["system"], where), "system", where)):
        first = {"role": "system", "content": system}
        chosen, rejected = [first, *chosen], [first, *rejected]
    return chosen, rejected


def first_difference(chosen: Messages, rejected: Messages) -> int:
    """Index of the first turn that differs, ignoring outer white space; the shorter length if none does."""
    pairs = zip(chosen, rejected, strict=False)
    parted = (i for i, (a, b) in enumerate(pairs) if a["role"] != b["role"] or _content(a) != _content(b))
    return next(parted, min(len(chosen), len(rejected)))


def _content(message: dict[str, str]) -> str:
    return message["content"].strip()


def _check_prompts(chosen: Messages, rejected: Messages, where: str) -> None:
    same = first_difference(chosen, rejected)
    if same == len(chosen) == len(rejected):
        return
    if same in (len(chosen), len(rejected)):
        raise BadRecord(f"{where}: the prompts differ: one side continues where the other ends (message {same})")
    roles = chosen[same]["role"], rejected[same]["role"]
    if roles != ("assistant", "assistant"):
        raise BadRecord(f"{where}: the prompts differ: message {same} is a {roles[0]} turn and a {roles[1]} turn")


def transcript(text: Any, column: str, where: str) -> Messages:
    """The turns of a "\\n\\nHuman: …\\n\\nAssistant: …" text, contents stripped; `BadRecord` for any other text."""
    parts = _SPEAKER.split(checked_text(text, column, where))
    if len(parts) < 3 or parts[0].strip():
        raise BadRecord(f"{where}: {column} is no transcript; format 'hh' starts with '\\n\\nHuman: '")
    speakers, contents = parts[1::2], parts[2::2]
    return [{"role": _HH_ROLES[s], "content": c.strip()} for s, c in zip(speakers, contents, strict=True)]


def _prompt(record: Record, columns: dict[str, str], where: str) -> Messages | None:
    """The column prompt as messages; None without such a column."""
    name = columns.get("prompt", "prompt")
    if name not in record and "prompt" not in columns:
        return None
    value = column_of(record, name, where)
    if isinstance(value, str):
        return [{"role": "user", "content": checked_text(value, name, where)}]
    return messages_in(value, name, where)


def _side(value: Any, column: str, prompt: Messages | None, where: str) -> Messages:
    if isinstance(value, str):
        if prompt is None:
            raise BadRecord(
                f"{where}: {column} is text but there is no column 'prompt'; name the column of the prompt in "
                "fields, or set format='hh' for Human/Assistant transcripts"
            )
        return [*prompt, {"role": "assistant", "content": checked_text(value, column, where)}]
    messages = messages_in(value, column, where)
    return [*prompt, *messages] if prompt is not None and messages[0]["role"] == "assistant" else messages


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:  # Python prints no number of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:40]


def margin_of(record: Record, source: Source, where: str) -> float:
    """The margin of a pair; 0 where the record has none, `BadRecord` where it is not a finite number."""
    columns = dict(source.columns)
    value = column_of(record, columns["margin"], where) if "margin" in columns else record.get("margin")
    if value is None:
        return 0.0
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not (number and abs(value) <= _LARGEST_MARGIN):  # also false for NaN
        raise BadRecord(f"{where}: margin is {_shown(value)}, not a finite number of 32 bits")
    return float(value)


class PairEncoder(Encoder):
    """Encodes pairs: two examples each, chosen and rejected, consecutive in the store and in a row."""

    unit = 2
    has_notes = True

    def __init__(self, spec: DataSpec, tokenizer: Tokenizer, folder: Path | None = None):
        super().__init__(spec, tokenizer, folder)
        self._margins = array.array("f")
        self._lines = None if spec.vision is None else pictures.PictureLines(folder)
        self._seen: dict[str, int] = {}

    def stored(self, example: Example, source: int) -> None:
        if example.note is not None:  # the chosen side carries the margin of its pair, and its pictures
            self._margins.append(example.note["margin"])
            if self._lines is not None:
                self._lines.add(source, example.document, example.note)

    def plan(self, lengths: np.ndarray, units: np.ndarray) -> packing.Plan:
        sides = lengths.reshape(-1, 2)[units]
        crops = None if self._lines is None or self.spec.row_crops is None else self._lines.crops[units]
        plan = self._packed(sides.sum(1), crops)
        # From pairs to sides: the rejected side follows the chosen side.
        length = sides[plan.document]
        start = np.stack([plan.start, plan.start + length[:, 0]], 1)
        document = units[plan.document][:, None] * 2 + np.arange(2)
        flat = [np.ascontiguousarray(a).reshape(-1) for a in (start, document, length)]
        row, zeros = np.repeat(plan.row, 2), np.zeros(2 * len(plan.row), np.int64)
        return packing.Plan(row, flat[0], flat[1], zeros, flat[2], plan.rows, plan.width)

    def _packed(self, lengths: np.ndarray, crops: np.ndarray | None) -> packing.Plan:
        """Packs pairs into rows, of at most `row_crops` crops where `crops` int64 [n] are given.

        Best-fit puts the shortest pairs of the whole set into its last rows, which would make P, the most pairs in a
        row, large. Without `max_pairs_per_row` the limit is therefore four times the average, doubled for as long as
        it costs over 1 % more rows.
        """
        size = self.spec.sequence_length
        if self.spec.packing == "none":
            return packing.one_each(lengths, size)
        if crops is not None:  # which bound the pairs of a row too
            return packing.best_fit(lengths, size, extra=crops, room=self.spec.row_crops)
        if self.spec.max_pairs_per_row is not None:
            return packing.best_fit(lengths, size, self.spec.max_pairs_per_row)
        free = packing.best_fit(lengths, size)
        most = 4 * -(-len(lengths) // free.rows)
        fullest = int(np.bincount(free.row).max())
        while most < fullest:
            plan = packing.best_fit(lengths, size, most)
            if plan.rows <= 1.01 * free.rows:
                return plan
            most *= 2
        return free

    def columns(self, plans: Sequence[packing.Plan]) -> dict[str, tuple[np.ndarray, str]]:
        counts = [np.diff(plan.row_offsets()) // 2 for plan in plans]
        most = 1 if self.spec.packing == "none" else self.spec.max_pairs_per_row
        self._per_row = most or int(max(count.max() for count in counts))
        per_row = np.concatenate(counts)
        pairs = np.concatenate([plan.document[::2] // 2 for plan in plans])
        index = np.full((len(per_row), self._per_row), -1, np.int32)
        margins = np.zeros(index.shape, np.float32)
        place = np.repeat(np.arange(len(per_row)), per_row), packing.within(per_row)
        index[place] = pairs
        margins[place] = np.frombuffer(self._margins, np.float32)[pairs]
        if self._lines is not None:
            assert self.spec.vision is not None, "checked by DataSpec"
            self._lines.finish()
            self._seen = {**self._lines.facts(place[0], pairs, copies=2),
                          "id_limit": pictures.id_limit(self.spec.vision, self.tokenizer)}  # fmt: skip
        return {
            "pair_index": (index, "number of the pair in segments 2p + 1 and 2p + 2, -1 where there is none"),
            "margins": (margins, "how much better the chosen side was judged, 0 where unknown"),
        }

    def facts(self) -> dict[str, Any]:
        return {"pairs": len(self._margins), "pairs_per_row": self._per_row, **self._seen}

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    def _item(self, record: Record, source: Source, where: str, counts: Counts) -> Any:
        sides = sides_of(record, source, where)
        margin = margin_of(record, source, where)
        same = first_difference(*sides)
        if same == len(sides[0]):
            counts.identical_dropped += 1
            return None
        if not all(_content(side[-1]) for side in sides) or not any(_content(m) for m in sides[0][:same]):
            counts.empty += 1
            return None
        rendered = []
        for side in sides:
            check_roles(side, self.spec, where)
            rendered.append(
                templates.render(template_of(self.spec), side, train_on=self.spec.train_on, compat=self.spec.compat)
            )
        note: dict[str, Any] = {"margin": margin}
        layouts: list[Layout] = []
        if self.spec.vision is not None:
            images, layouts = pictures.images_of(record, source, self.spec, where)
            note |= pictures.note_of(images, layouts)
            if pictures.too_many_crops(note["crops"], self.spec, where, counts):
                return None
        return *rendered, note, layouts

    def _tokens(self, items: list[Any]) -> list[Any]:
        encoded = templates.tokenize([side for item in items for side in item[:2]], self.tokenizer)
        sides = [pictures.behind_start(*side, items[i // 2][3]) for i, side in enumerate(encoded)]
        return [(*sides[2 * i : 2 * i + 2], item[2]) for i, item in enumerate(items)]

    def _admit(self, tokens: Any, document: int, where: str, counts: Counts) -> list[Example]:
        (chosen, chosen_marks), (rejected, rejected_marks), note = tokens
        keep = self._lengths(len(chosen), len(rejected))
        if keep != (len(chosen), len(rejected)):
            what = f"{where}: sides of {len(chosen)} and {len(rejected)} tokens, over max_side_length "
            if not self._may_cut(f"{what}{self.spec.side_limit} or over sequence_length together", counts):
                return []
        chosen, chosen_marks = chosen[: keep[0]], chosen_marks[: keep[0]]
        rejected, rejected_marks = rejected[: keep[1]], rejected_marks[: keep[1]]
        if nothing_trained(chosen, chosen_marks) or nothing_trained(rejected, rejected_marks):
            counts.untrained_dropped += 1
            return []
        if np.array_equal(
            chosen, rejected
        ):  # they differ only after truncation, or in white space that the template strips
            counts.identical_dropped += 1
            return []
        if self.spec.repetition_filter and (filters.is_repetitive(chosen) or filters.is_repetitive(rejected)):
            counts.repetitive_dropped += 1
            return []
        return [Example(chosen, chosen_marks, document, note), Example(rejected, rejected_marks, document)]

    def _lengths(self, chosen: int, rejected: int) -> tuple[int, int]:
        """Tokens kept of each side: at most the limit each, and at most a row together.

        The longer side is truncated first, and no side to less than half a row because of the other.
        """
        size, limit = self.spec.sequence_length, self.spec.side_limit
        chosen, rejected = min(chosen, limit), min(rejected, limit)
        if chosen + rejected > size:
            shorter = min(chosen, rejected, size // 2)
            return (size - shorter, shorter) if chosen >= rejected else (shorter, size - shorter)
        return chosen, rejected
