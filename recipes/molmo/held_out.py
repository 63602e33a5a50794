"""Records about pictures of one's own, divided: training records, and held-out questions of each task.

A record is one of docs/molmo.md. Every fifth picture is held out with all that is said about it. What is asked about it
is a task: an answer that is a whole number is `counting`, another one `answers`, points are `pointing`; captions are
trained and not asked. `blind` of a held-out record is what the best single response to its question scores, whatever
the picture shows.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from easylm_jax.data import picture_prompts, picture_records
from easylm_jax.data.points import write
from easylm_jax.data.records import BadRecord
from easylm_jax.rewards.pictures import pointing
from models.errors import UserError

HELD = 5  # one picture in so many
VERIFIERS = {"answers": "short_answer", "counting": "count", "pointing": "points_f1"}
Record = dict[str, Any]


def make(seed: int, *, records: str) -> dict[str, list[Record]]:
    """The files of the records of a JSONL file, whose paths of pictures are relative to its folder."""
    return files_of(read(records))


def read(path: str) -> list[Record]:
    """The records of a JSONL file with whole paths of pictures; `UserError` for a line that is none."""
    folder, found = Path(path).expanduser().parent, []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise BadRecord(f"{where}: a record is an object")
            names = picture_records.paths_of(record, folder, where)
        except (ValueError, BadRecord) as error:
            raise UserError(str(error) if isinstance(error, BadRecord) else f"{where}: {error}") from None
        record = {name: value for name, value in record.items() if name not in ("image", "images")}
        found.append({**record, "images": names})
    return found


def tasks_of(records: Iterable[Record]) -> list[str]:
    """The tasks that held-out pictures of these records have."""
    there = {task for record in _divided(records)[1] for task, _ in _asked(record)}
    return [task for task in VERIFIERS if task in there]


def files_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """`train.jsonl`, a file for each task, and `texts.jsonl` with the words of training for a vocabulary."""
    train, held = _divided(records)
    tests: dict[str, list[Record]] = {}
    for record in held:
        for task, test in _asked(record):
            tests.setdefault(task, []).append({**test, "images": record["images"]})
    files = {f"{task}.jsonl": _with_blind(task, own) for task, own in tests.items()}
    return {"train.jsonl": train, **files, "texts.jsonl": [{"text": text} for text in _texts(train)]}


def _divided(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    records = list(records)
    pictures = list(dict.fromkeys(tuple(record["images"]) for record in records))
    held = set(pictures[HELD - 1 :: HELD])
    return ([record for record in records if tuple(record["images"]) not in held],
            [record for record in records if tuple(record["images"]) in held])  # fmt: skip


def _asked(record: Record) -> Iterable[tuple[str, Record]]:
    """The task of each annotation that can be asked, and the question with what its verifier needs."""
    for talk in record.get("annotations", [record]):
        label, style = str(talk.get("label", "")).lower(), talk.get("style")
        if "points" in talk:
            style = style or "pointing"
            prompt = picture_prompts.asked(style, talk.get("question"), label, None)
            test = {"prompt": prompt, "points": talk["points"], "regions": talk.get("regions")}
            if style == "point_count":
                yield "counting", {"prompt": prompt, "count": len(talk["points"])}
            else:
                yield "pointing", {name: value for name, value in test.items() if value is not None}
        elif "question" in talk and "answer" in talk:
            prompt = picture_prompts.asked("user_qa" if style is None else style, talk["question"], "", None)
            answers = talk["answer"] if isinstance(talk["answer"], list) else [talk["answer"]]
            if str(answers[0]).isdecimal():
                yield "counting", {"prompt": prompt, "count": int(Counter(answers).most_common(1)[0][0])}
            else:
                yield "answers", {"prompt": prompt, "answer": answers}


def _with_blind(task: str, tests: list[Record]) -> list[Record]:
    """The records with what the best response to each question scores without a look at the picture."""
    done = []
    for prompt in dict.fromkeys(test["prompt"] for test in tests):
        own = [test for test in tests if test["prompt"] == prompt]
        guesses: list[Any] = ["There are none.", *(f'x="{x}" y="{y}"' for x in range(5, 100, 10)
                                                   for y in range(5, 100, 10))]  # fmt: skip
        if task != "pointing":
            column = "count" if task == "counting" else "answer"
            guesses = list({json.dumps(test[column]): test[column] for test in own}.values())
        scores = {str(guess): [_fits(task, guess, test) for test in own] for guess in guesses}
        best = max(scores.values(), key=sum)
        done += [{**test, "blind": score} for test, score in zip(own, best, strict=True)]
    return done


def _fits(task: str, guess: Any, test: Mapping[str, Any]) -> float:
    if task == "pointing":
        return pointing(guess, test).f1
    if task == "counting":
        return float(guess == test["count"])
    return float(bool(set(guess) & set(test["answer"])))


def _texts(train: Iterable[Record]) -> Iterable[str]:
    for record in train:
        for talk in record.get("annotations", [record]):
            answer = talk.get("answer", talk.get("caption", ""))
            if "points" in talk:
                answer = write(talk["points"], str(talk.get("label", "")).lower())
            yield f" User: {talk.get('question', '')} Assistant: {answer}"
