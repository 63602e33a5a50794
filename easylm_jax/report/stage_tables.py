"""Tables of the stages: what each did, and the last values of those that trained."""

from __future__ import annotations

from collections.abc import Sequence

from easylm_jax.report.layout import Column, Table
from easylm_jax.report.numbers import NONE, count, decimal, duration, scientific, with_error
from easylm_jax.report.read import RunData, StageData, number


def stage_tables(run: RunData) -> list[Table]:
    """All stages in one table, then what matters of those that trained, by kind."""
    missing = [("", name) for name in run.missing]
    note = f"All stages together: {duration(run.seconds)}."
    return tables_of([("", stage) for stage in run.stages], missing, (note,))


def tables_of(
    stages: Sequence[tuple[str, StageData]], missing: Sequence[tuple[str, str]] = (), notes: tuple[str, ...] = ()
) -> list[Table]:
    """The tables of stages, each with the name of its run, which is a column unless it is "". `missing` are the runs
    and names of stages that are not begun; `notes` stand below the first table."""
    tables = [_overview(stages, missing, notes)]
    supervised = [(run, stage) for run, stage in stages if stage.family == "train"]
    reinforced = [(run, stage) for run, stage in stages if stage.family == "rl"]
    if supervised:
        tables.append(_supervised(supervised))
    if reinforced:
        tables.append(_reinforced(reinforced))
    return tables


def _table(
    title: str, columns: Sequence[Column], rows: Sequence[tuple[str, ...]], notes: tuple[str, ...], runs: Sequence[str]
) -> Table:
    """A table whose first column is the stage; the second is its run, where there are several."""
    if any(runs):
        columns = [columns[0], Column("run", words=True), *columns[1:]]
        rows = [(row[0], run, *row[1:]) for run, row in zip(runs, rows, strict=True)]
    return Table(title, tuple(columns), tuple(rows), notes)


def _overview(
    stages: Sequence[tuple[str, StageData]], missing: Sequence[tuple[str, str]], notes: tuple[str, ...]
) -> Table:
    rows = [
        (stage.name, stage.kind, _start(stage), state(stage), duration(stage.seconds), _outcome(stage))
        for _, stage in stages
    ]
    rows += [(name, NONE, NONE, "not begun", NONE, NONE) for _, name in missing]
    names = ("stage", "kind", "starts from", "state")
    columns = [Column(name, words=True) for name in names] + [Column("time"), Column("result", words=True)]
    return _table("Stages", columns, rows, notes, [run for run, _ in (*stages, *missing)])


def _start(stage: StageData) -> str:
    start = stage.config.get("init")
    if isinstance(start, str):
        return start
    return "fresh parameters" if stage.config.get("model") is not None else NONE


def state(stage: StageData) -> str:
    """How far a stage is, in words."""
    if stage.finished:
        return f"done, {stage.step:,} steps" if stage.step else "done"
    if stage.step is None:
        return "not done"
    return f"not done, step {stage.step:,}" + (f" of {stage.steps:,}" if stage.steps else "")


def _outcome(stage: StageData) -> str:
    """The one number that says what came out."""
    values = stage.values
    if stage.family == "rl":
        score = with_error(values.get("validation_score"), values.get("validation_stderr"), 100, 1)
        return f"held-out score {score} %" if score != NONE else f"score {decimal(values.get('score'), 1, 3)}"
    if stage.kind in ("RewardModel", "DPO") and number(values.get("validation_accuracy")) is not None:
        return f"held-out accuracy {decimal(values['validation_accuracy'], 100, 1)} %"
    if stage.family == "train":
        which = "validation_loss" if number(values.get("validation_loss")) is not None else "loss"
        return f"{'held-out ' if which != 'loss' else ''}loss {decimal(values.get(which), 1, 4)}"
    if stage.kind == "BestOfN" and values.get("prompts") is not None:
        best = with_error(values.get("best_score"), values.get("best_score_stderr"), 1, 3)
        mean = decimal(values.get("score"), 1, 3)
        return f"{count(values['prompts'])} prompts, {count(values.get('pairs'))} pairs; score {mean}, best {best}"
    if stage.kind == "MajorityVote" and values.get("prompts") is not None:
        right = with_error(values.get("correct"), values.get("correct_stderr"), 100, 1)
        agree = decimal(values.get("agreement"), 100, 1)
        return f"{count(values['labelled'])} of {count(values['prompts'])} prompts; {right} % right, {agree} % agree"
    if stage.table is not None:
        return f"{len(stage.table['rows'])} methods"
    done = stage.done or {}
    if "tokenizer" in done:
        return f"vocabulary of {count(done['tokenizer'].get('vocab_size'))}"
    return ", ".join(done.get("files") or ()) or NONE


def _supervised(stages: Sequence[tuple[str, StageData]]) -> Table:
    columns = (
        Column("stage", words=True), Column("kind", words=True), Column("loss"), Column("held-out loss"),
        Column("accuracy", "%"), Column("held-out accuracy", "%"), Column("trained on", "tokens"),
        Column("speed", "tokens/s"), Column("MFU", "%"), Column("skipped", "updates"),
    )  # fmt: skip
    rows = []
    for _, stage in stages:
        v = stage.values
        rows.append((
            stage.name, stage.kind, decimal(v.get("loss"), 1, 4), decimal(v.get("validation_loss"), 1, 4),
            decimal(v.get("accuracy"), 100, 1), decimal(v.get("validation_accuracy"), 100, 1), count(v.get("tokens")),
            count(v.get("tokens_per_second")), decimal(v.get("mfu"), 100, 1), count(v.get("skipped_total")),
        ))  # fmt: skip
    notes = ("At the last step. Accuracy: of language models, tokens guessed right; of reward models and DPO, pairs.",)
    return _table("Supervised stages", columns, rows, notes, [run for run, _ in stages])


def _reinforced(stages: Sequence[tuple[str, StageData]]) -> Table:
    columns = (
        Column("stage", words=True), Column("kind", words=True), Column("held-out score", "%"), Column("score"),
        Column("reward"), Column("KL", "nats"), Column("entropy", "nats/token"), Column("length", "tokens"),
        Column("ended", "%"), Column("clipped", "% of tokens"), Column("sampler gap", "nats/token"),
        Column("sampling", "responses/s"),
    )  # fmt: skip
    rows = []
    for _, stage in stages:
        v = stage.values
        rows.append((
            stage.name, stage.kind, with_error(v.get("validation_score"), v.get("validation_stderr"), 100, 1),
            decimal(v.get("score"), 1, 3), decimal(v.get("reward"), 1, 3), decimal(v.get("kl"), 1, 2),
            decimal(v.get("entropy"), 1, 3), decimal(v.get("length"), 1, 1), decimal(v.get("ended"), 100, 1),
            decimal(v.get("clip_fraction"), 100, 2), scientific(v.get("sampler_gap")),
            decimal(rollout_speed(stage), 1, 1),
        ))  # fmt: skip
    notes = (
        "At the last rollout; sampling speed over the whole run. Score: as the reward gives it; reward: as the "
        "algorithm sees it. Sampler gap: mean distance of the sampler's log-probabilities from the trainer's.",
    )
    return _table("Reinforcement learning", columns, rows, notes, [run for run, _ in stages])


def rollout_speed(stage: StageData) -> float | None:
    """Responses a second while sampling, over all its steps."""
    pairs = [(number(line.get("rollouts_per_second")), number(line.get("rollout_seconds"))) for line in stage.metrics]
    known = [(speed, seconds) for speed, seconds in pairs if speed is not None and seconds is not None]
    spent = sum(seconds for _, seconds in known)
    return sum(speed * seconds for speed, seconds in known) / spent if spent else None
