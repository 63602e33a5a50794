"""Reads preference sets of all forms into one record: RewardBench 1 and 2, M-RewardBench, prior sets, one's own files.

| form | columns |
|---|---|
| pairs (RewardBench 1, M-RewardBench, prior sets) | `prompt` (text or messages), `chosen`, `rejected` (texts) |
| pairs with messages | `chosen`, `rejected` as messages that begin with the same prompt |
| best of four and Ties (RewardBench 2) | `prompt`, `chosen` and `rejected` as lists of texts |

`question` and `input` are other names of `prompt`, and `source` is another one of `subset`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from easylm_jax.config import Source
from easylm_jax.data.preference import first_difference
from easylm_jax.data.records import BadRecord
from easylm_jax.data.sources import read_records
from easylm_jax.evaluate.preferences.languages import ENGLISH, LANGUAGES
from models.errors import UserError

Message = Mapping[str, str]
TRANSLATION = "translation"  # the configuration of M-RewardBench with 800 pairs of translations
_PROMPTS = ("prompt", "question", "input")
_SUBSETS = ("source", "subset")
_MARKERS = ("<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>", "<|start_header_id|>", "[[A]]", "[[B]]",
            "[The Start of Assistant")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and its answers, the right ones first. `kind`: "pair", "bon" (best of several) or "ties"."""

    id: str
    language: str
    subset: str
    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    correct: int = 1
    kind: Literal["pair", "bon", "ties"] = "pair"


def read_items(path: str | Path, language: str = ENGLISH, limit: int | None = None) -> list[Item]:
    """The items of a file (or `hf:` set) in its order.

    Raises:
        UserError: a record lacks a column or has another form, a pair's prompts differ, or two have one id and subset.
    """
    items: list[Item] = []
    seen: dict[tuple[str, str], str] = {}
    for record, where in read_records(Source(str(path), limit=limit)):
        if isinstance(record, BadRecord):
            raise UserError(str(record))
        item = item_of(record, where, language, len(items))
        key = (item.id, item.subset)
        if key in seen:
            raise UserError(f"{where}: the id {item.id!r} of subset {item.subset!r} stands also in {seen[key]}")
        seen[key] = where
        items.append(item)
    if not items:
        raise UserError(f"{path} holds no preference pair")
    return items


def item_of(record: Mapping[str, Any], where: str, language: str = ENGLISH, number: int = 0) -> Item:
    """The item of one record; `number` is its id where it has none."""
    missing = [name for name in ("chosen", "rejected") if record.get(name) is None]
    if missing:
        raise UserError(f"{where}: no column {' and '.join(missing)}; it has {', '.join(record) or 'none'}")
    subset = str(next((record[name] for name in _SUBSETS if record.get(name)), "all"))
    chosen, rejected = record["chosen"], record["rejected"]
    named: dict[str, Any] = {
        "id": str(record.get("id", number)),
        "language": str(record.get("language") or language),
        "subset": subset,
    }
    prompt = _prompt(record, where)
    if _is_texts(chosen) and _is_texts(rejected) and not (isinstance(chosen, str) or isinstance(rejected, str)):
        if prompt is None:
            raise UserError(f"{where}: no column prompt; it has {', '.join(record)}")
        kind: Literal["bon", "ties"] = "ties" if subset.lower() == "ties" else "bon"
        return Item(**named, prompt=prompt, completions=(*chosen, *rejected), correct=len(chosen), kind=kind)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise UserError(f"{where}: no column prompt; it has {', '.join(record)}")
        return Item(**named, prompt=prompt, completions=(chosen, rejected))
    sides = [_messages(value, name, where) for name, value in (("chosen", chosen), ("rejected", rejected))]
    same = first_difference(*sides)
    if {same + 1} != {len(side) for side in sides} and sides[0][:-1] != sides[1][:-1]:
        raise UserError(f"{where}: the prompts of chosen and rejected differ from message {same + 1} on")
    if prompt is not None and len(sides[0]) > 1 and list(prompt) != sides[0][:-1]:
        raise UserError(f"{where}: the column prompt and the beginning of chosen differ")
    own = tuple(sides[0][:-1]) or prompt
    if not own:
        raise UserError(f"{where}: chosen holds an answer and no prompt, and there is no column prompt")
    return Item(**named, prompt=own, completions=(sides[0][-1]["content"], sides[1][-1]["content"]))


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(text, str) for text in value)


def _prompt(record: Mapping[str, Any], where: str) -> tuple[Message, ...] | None:
    name = next((name for name in _PROMPTS if record.get(name) is not None), None)
    if name is None:
        return None
    value = record[name]
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    return tuple(_messages(value, name, where))


def _messages(value: Any, name: str, where: str) -> list[dict[str, str]]:
    turns: list[Any] = value if isinstance(value, list) and value else [None]
    for turn in turns:
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(f"{where}: {name} is neither a text nor a list of messages with role and content")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def files_by_language(folder: str | Path, languages: Sequence[str] | None = None) -> dict[str, str]:
    """The file or folder of each language in a folder of M-RewardBench: `deu_Latn.jsonl`, `deu_Latn/*.parquet` …

    English RewardBench is `eng_Latn`, the translation task `translation`. Languages without a file are left out.

    Raises:
        UserError: there is no language at all, or one of `languages` is not there.
    """
    root = Path(folder)
    known = (ENGLISH, *LANGUAGES, TRANSLATION)
    found: dict[str, str] = {}
    for code in known:
        entries = sorted(root.glob(f"{code}.*")) + [path for path in (root / code,) if path.is_dir()]
        if len(entries) > 1:
            raise UserError(f"{folder} has several files of {code}: {', '.join(path.name for path in entries)}")
        if entries:
            found[code] = str(entries[0])
    for code in languages or ():
        if code not in known:
            raise UserError(f"no language {code!r}; there are {', '.join(known)}")
        if code not in found:
            raise UserError(f"{folder} has no file of {code}, such as {code}.jsonl")
    if not found:
        raise UserError(f"{folder} has no language of M-RewardBench, such as deu_Latn.jsonl or deu_Latn/")
    return {code: path for code, path in found.items() if not languages or code in languages}


def oddities(items: Iterable[Item]) -> dict[str, int]:
    """Counts of what is scored but worth knowing: empty and equal answers, and prompts with markers of templates."""
    counts = {"empty_answers": 0, "equal_answers": 0, "prompts_with_markers": 0}
    for item in items:
        counts["empty_answers"] += not all(text.strip() for text in item.completions)
        counts["equal_answers"] += len(set(item.completions)) < len(item.completions)
        counts["prompts_with_markers"] += any(mark in turn["content"] for turn in item.prompt for mark in _MARKERS)
    return counts
