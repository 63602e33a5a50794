"""`easylm check`: scores responses against the instructions of their prompts (IFBench and IFEval file formats)."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.rows import prompt_rows

if TYPE_CHECKING:
    from easylm_jax.rewards.instructions.scoring import Verdict

MODES = ("strict", "loose")
_SPAN = "repeat:repeat_span"  # published versions check a different span than the prompts ask for
SECONDS = 10.0  # of CPU time for one instruction of one response
_CALL = "'easylm_jax.rewards.instructions.scoring:strict_and_loose'"
_REQUIRED = ("prompt", "instruction_id_list", "kwargs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "responses",
        type=kinds.INPUT_FILE,
        metavar="FILE",
        help="JSON lines with `prompt` and `response`; without --prompts also `instruction_id_list` and `kwargs`",
    )
    parser.add_argument(
        "--prompts",
        type=kinds.INPUT_FILE,
        metavar="FILE",
        help="JSON lines with `prompt`, `instruction_id_list` and `kwargs`",
    )
    parser.add_argument(
        "--version",
        choices=["r26", "r25", "fixed"],
        default="r26",
        help="r26: the published scores (default); r25: the paper's numbers; fixed: with the bugs of both corrected",
    )
    parser.add_argument(
        "--answers", action="store_true", help="score the text after the last </think>, without <answer> tags"
    )
    parser.add_argument(
        "--json",
        type=kinds.OUTPUT_FILE,
        metavar="FILE",
        help="write the report and the verdict on every instruction as JSON",
    )
    parser.add_argument(
        "--out",
        type=kinds.OUTPUT_FOLDER,
        metavar="DIR",
        help="write strict.jsonl and loose.jsonl in IFBench's result format",
    )
    parser.add_argument(
        "--nltk-data", type=kinds.INPUT_FOLDER, metavar="DIR", help="folder of the NLTK data (default: $NLTK_DATA)"
    )


@dataclass(frozen=True)
class Line:
    """A prompt with its instructions and its response; `response` is None if there is none."""

    key: str
    prompt: str
    ids: list[str]
    kwargs: list[Mapping[str, Any] | None]
    response: str | None


def main(arguments: argparse.Namespace) -> int:
    """`easylm check`: scores the responses, prints the report and writes the requested files."""
    from easylm_jax.rewards import text as rewards_text
    from easylm_jax.rewards.instructions import scoring, use_nltk_data

    if arguments.nltk_data:
        use_nltk_data(arguments.nltk_data)
    responses = prompt_rows(arguments.responses)
    if arguments.prompts:
        lines, unused = _join(prompt_rows(arguments.prompts), responses, arguments.prompts, arguments.responses)
    else:
        lines, unused = [_line(row, where, row.get("response")) for where, row in responses], 0
    if not lines:
        raise _error(f"{arguments.prompts or arguments.responses} holds no line to score")
    scored = [rewards_text.answer_of(line.response) if arguments.answers else line.response for line in lines]
    verdicts, stopped = _score(lines, scored, arguments.version, arguments.nltk_data)
    missing = sum(1 for line in lines if line.response is None)
    result = {
        "version": arguments.version,
        "prompts": len(lines),
        "instructions": sum(len(line.ids) for line in lines),
        "missing": missing,
        "unused": unused,
        "stopped": stopped,
        **{mode: scoring.report(verdicts, mode) for mode in MODES},
    }
    if arguments.version != "fixed" and _SPAN in result["strict"]["counts"]:
        result["span_as_asked"] = _span_as_asked(lines, scored, arguments.nltk_data)
    print(table(result))
    if arguments.json:
        rows = [_verdict_row(line, verdict) for line, verdict in zip(lines, verdicts, strict=True)]
        _write(Path(arguments.json), json.dumps({**result, "lines": rows}, indent=1, ensure_ascii=False) + "\n")
    if arguments.out:
        for mode in MODES:
            rows = [_result_row(line, getattr(verdict, mode)) for line, verdict in zip(lines, verdicts, strict=True)]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            _write(Path(arguments.out) / f"{mode}.jsonl", text)
    return 0


def _error(message: str) -> Exception:
    from models.errors import UserError

    return UserError(message)


def _line(row: Mapping[str, Any], where: str, response: Any) -> Line:
    for name in _REQUIRED:
        if name not in row:
            raise _error(f"{where} has no `{name}`; give the file of prompts and instructions with --prompts")
    if not row["instruction_id_list"]:
        raise _error(f"{where} has no instruction; add at least one to `instruction_id_list`")
    key = str(row.get("key", where.rpartition(" ")[2]))
    return Line(key, row["prompt"], row["instruction_id_list"], row["kwargs"], _text(response))


def _text(response: Any) -> str | None:
    """A response as text. A value that is neither text nor None becomes empty text, which follows no instruction."""
    return response if response is None or isinstance(response, str) else ""


def _join(
    prompts: Iterable[tuple[str, dict[str, Any]]],
    responses: Iterable[tuple[str, dict[str, Any]]],
    prompts_file: str,
    responses_file: str,
) -> tuple[list[Line], int]:
    """Joins prompts and responses, by the exact prompt or else by the prompt without surrounding whitespace.

    Returns the joined lines and the number of unused responses. Of several responses to one prompt, the last is used.
    """
    exact: dict[str, tuple[int, Any]] = {}
    stripped: dict[str, tuple[int, Any]] = {}
    given = 0
    for where, row in responses:
        if "response" not in row:
            raise _error(f"{where} has no `response`")
        exact[row["prompt"]] = stripped[row["prompt"].strip()] = (given, row["response"])
        given += 1
    lines, used = [], set()
    for where, row in prompts:
        number, response = exact.get(row["prompt"]) or stripped.get(row["prompt"].strip()) or (None, None)
        lines.append(_line(row, where, "" if number is not None and response is None else response))
        used.add(number)
    if lines and used == {None}:
        raise _error(f"no prompt of {prompts_file} has a response in {responses_file}; they are joined by `prompt`")
    return lines, given - len(used - {None})


def _score(
    lines: Sequence[Line], responses: Sequence[str | None], version: str, nltk_data: str | None
) -> tuple[list[Verdict], int]:
    """The verdicts on each response, and the number of checks that were stopped, which count as not followed.

    The checks run in worker processes with a limit on CPU time, because keywords of prompts are regular expressions in
    most versions, and one from a file may take for ever.
    """
    from easylm_jax.rewards.instructions import scoring
    from easylm_jax.rewards.verify import shared_pool
    from models.errors import UserError

    texts, records = [], []
    for line, response in zip(lines, responses, strict=True):
        try:
            scoring.check_arguments(line.ids, line.kwargs)
        except UserError as error:
            raise UserError(f"prompt {line.key}: {error}") from None
        for name, kwargs in zip(line.ids, line.kwargs, strict=True):
            texts.append(response or "")
            records.append({"id": name, "kwargs": kwargs, "version": version, "nltk_data": nltk_data})
    found = shared_pool(None, SECONDS).verdicts([_CALL], texts, records)
    values = iter(found.values[:, 0].astype(int).tolist())
    verdicts = []
    for line in lines:
        own = [next(values) for _ in line.ids]
        verdicts.append(
            scoring.Verdict(tuple(line.ids), tuple(bool(v & 1) for v in own), tuple(bool(v & 2) for v in own))
        )
    return verdicts, int(found.timed_out.sum())


def _span_as_asked(lines: Iterable[Line], responses: Iterable[str | None], nltk_data: str | None) -> dict[str, float]:
    """The accuracy on `repeat:repeat_span` with the span that the prompt asks for, including its last word."""
    from easylm_jax.rewards.instructions import scoring

    asked = [
        (dataclasses.replace(line, ids=[name], kwargs=[kwargs]), response)
        for line, response in zip(lines, responses, strict=True)
        for name, kwargs in zip(line.ids, line.kwargs, strict=True)
        if name == _SPAN
    ]
    verdicts, _ = _score([line for line, _ in asked], [response for _, response in asked], "fixed", nltk_data)
    return {mode: scoring.share([getattr(verdict, mode)[0] for verdict in verdicts]) for mode in MODES}


def _verdict_row(line: Line, verdict: Any) -> dict[str, Any]:
    return {
        "key": line.key,
        "prompt": line.prompt,
        "response": line.response,
        "instruction_id_list": line.ids,
        "strict": list(verdict.strict),
        "loose": list(verdict.loose),
    }


def _result_row(line: Line, followed: tuple[bool, ...]) -> dict[str, Any]:
    return {
        "follow_all_instructions": all(followed),
        "follow_instruction_list": list(followed),
        "instruction_id_list": line.ids,
        "prompt": line.prompt,
        "response": line.response or "",
    }


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise _error(f"cannot write {path}: {error}") from None


def table(result: Mapping[str, Any]) -> str:
    """The report as text: one line for prompts, instructions, each group and each instruction id, in percent."""
    stopped = result.get("stopped", 0)
    lines = [
        f"{result['prompts']} prompts, {result['instructions']} instructions, version {result['version']}; "
        f"{result['missing']} prompts without a response (they fail), {result['unused']} responses not used"
        + (f"; {stopped} checks took too long and were stopped (they fail)" if stopped else ""),
        "",
        f"{'':<48}{'n':>5}{'strict':>9}{'loose':>9}",
    ]

    def add(name: str, count: Any, *values: float) -> None:
        lines.append(f"{name:<48}{count:>5}" + "".join(f"{100 * value:>9.2f}" for value in values))

    strict, loose = (result[mode] for mode in MODES)
    add("prompt-level", result["prompts"], strict["prompt"], loose["prompt"])
    for place, name in enumerate(("  95 % interval, low", "  95 % interval, high")):
        add(name, "", strict["prompt_interval"][place], loose["prompt_interval"][place])
    add("instruction-level", result["instructions"], strict["instruction"], loose["instruction"])
    counts = strict["counts"]
    lines.append("")
    for group in strict["groups"]:
        count = sum(n for name, n in counts.items() if name.partition(":")[0] == group)
        add(group, count, strict["groups"][group], loose["groups"][group])
    lines.append("")
    for name, count in counts.items():
        add(name, count, strict["ids"][name], loose["ids"][name])
        if name == _SPAN and "span_as_asked" in result:
            add("  by the span asked for (fixed)", count, *(result["span_as_asked"][mode] for mode in MODES))
    return "\n".join(lines)
