"""`easylm eval MODERATOR --suite wildguard --data FOLDER`: a moderator on moderation benchmarks (spec wildguard §6)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easylm_jax.checkpoint.load import resolve_model
from easylm_jax.config import fields
from easylm_jax.evaluate import moderation_report
from easylm_jax.evaluate.moderation_sets import SETS, read_set
from easylm_jax.rewards.moderation import FIELDS
from easylm_jax.rewards.moderator import load_moderator
from easylm_jax.runtime.files import plain
from models.errors import UserError

# The ten public benchmarks of WildGuard, and WildGuardTest.
SUITE = (
    "toxic_chat", "openai_moderation", "aegis", "simple_safety_tests", "harmbench_prompts", "harmbench_responses",
    "safe_rlhf", "beaver_tails", "xstest_response_harm", "xstest_response_refusal", "wildguard_test",
)  # fmt: skip


def evaluate(
    model: str, data: str | None, out: Path, *, template: str | None = None, tokenizer: str | None = None,
    limit: int | None = None, progress: Callable[[int], Any] | None = None,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """The results in the form of `easylm eval --json`, and the folder with the files of `moderation_report.write`.

    Args:
        model: the moderator, as `easylm moderate` takes it.
        data: a folder with a file for each benchmark, such as `wildguard_test.jsonl` (any of `SETS`); None reads those
            of `SUITE` that are on the hub.
        out: where the folder of results is made.
        template: a file with the moderator's input; None is this project's own.
        tokenizer: of the model, where its checkpoint does not name it.
        limit: rows of each benchmark.
        progress: called with the number of rows that are done.

    Raises:
        UserError: there is no benchmark, a file lacks a column, or the model cannot be loaded.
    """
    files = _files(data)
    sets = {name: read_set(name, path, limit) for name, path in files.items()}
    moderator = load_moderator(model, template=template, tokenizer=tokenizer)
    answers = {model: moderation_report.answered(moderator, sets, progress)}
    result = moderation_report.scored(f"wildguard: {model}", answers)
    settings = {"model": resolve_model(model)[0], "suite": "wildguard", "template": template, "files": files,
                "limit": limit}  # fmt: skip
    folder = out / f"eval-wildguard-{fields.digest(settings)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    moderation_report.write(folder, result, answers)
    tasks = [
        {"task": f"{name}:{field}", "metric": "f1", "score": each["f1"], "stderr": each["stderr"], "n": each["n"]}
        for name, own in result["scores"][model].items()
        for field, each in own.items()
    ]
    # Over the public benchmarks of a task, WildGuardTest apart, as the paper averages them.
    averages = {}
    for field in FIELDS:
        public = [task["score"] for task in tasks if task["task"].endswith(f":{field}")
                  and task["task"].partition(":")[0] in SUITE[:-1]]  # fmt: skip
        averages[field] = {"score": statistics.fmean(public) if public else None, "sets": len(public)}
    return plain({"model": model, "tasks": tasks, "averages": {"wildguard": averages}, "analysis": result}), folder


def _files(data: str | None) -> dict[str, str | None]:
    if data is None:
        return {name: None for name in SUITE if SETS[name].source is not None}
    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"wildguard reads a folder with a file for each benchmark, such as wildguard_test.jsonl; give "
                        f"it with --data, not {data}")  # fmt: skip
    found: dict[str, str | None] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.partition(".")[0]
        if name in SETS:
            if name in found:
                raise UserError(f"{folder} has several files of {name}: {Path(str(found[name])).name}, {path.name}")
            found[name] = str(path)
    if not found:
        raise UserError(
            f"{folder} has no file of a benchmark, such as wildguard_test.jsonl; there are {', '.join(SETS)}"
        )
    return {name: found[name] for name in (*SUITE, *SETS) if name in found}
