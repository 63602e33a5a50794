"""The stage `Dialogues`: specs → plans → both sides → judged violations → filters → files (spec sdsd §2 to §5, §7, §8).

Dialogues are made `batch` at a time, and a finished batch is a file; a stopped stage goes on with the next. A batch
depends on its specs and the seed alone, so a stage that was stopped leaves the files of one that never was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from easylm_jax.config.dialogue import Dialogues
from easylm_jax.config.dialogue_prompts import PROMPTS, VERSION
from easylm_jax.config.workspace import Workspace
from easylm_jax.data.curation.quality import parse_rules
from easylm_jax.rewards.moderation import FIELDS
from easylm_jax.rewards.moderator import Moderator
from easylm_jax.runtime import files, processes
from easylm_jax.synthesize import dialogue_filters, dialogue_tables, talk
from easylm_jax.synthesize import dialogue_rules as rules
from easylm_jax.synthesize.opening import opened, rows_of, write_text
from easylm_jax.synthesize.speakers import Ask, Manner, Speaker, answer_all

Row = dict[str, Any]
_SEEDS = ("principles", "goals", "personas", "domains")


def make_dialogues(stage: Dialogues, workspace: Workspace) -> dict[str, Any]:
    """Runs the stage; returns the content of `done.json`."""
    seeds = {name: rows_of(workspace, getattr(stage, name), f"stage {stage.name}: {name}") for name in _SEEDS}
    rules.check_principles(seeds["principles"])
    parse_rules(stage.rules or "empty")  # an unknown rule is an error before anything is asked
    specs = rules.make_specs(stage.count, stage.seed, stage.violate, stage.max_messages, **seeds)[: stage.limit]
    with opened(stage, workspace) as opening:
        agent = opening.speaker(stage.init, stage.server, "agent", reuse=stage.reuse)
        other = stage.user is not None or stage.user_server is not None
        # The two sides have prompts of their own, and so slots of their own, even where one model speaks both.
        user = opening.speaker(stage.user if other else stage.init, stage.user_server if other else stage.server,
                               "user", reuse=stage.reuse)  # fmt: skip
        moderator = opening.moderator(stage.moderator, stage.prompts)
        made = opening.made(
            specs, "dialogues", lambda chunk, progress: make_batch(stage, user, agent, moderator, chunk, progress)
        )
        asked = {"agent": agent.summary(), "user": user.summary(), "device_hours": opening.device_hours}
        metrics = _write(stage, workspace, made, asked) if processes.is_first_process() else {}
    names = [f"{name}.jsonl" for name in ("dialogues", "dropped", "sft", "released")]
    return {"files": [*names, "stats.json", "tables.md", "reading.md"], "metrics": metrics}


def make_batch(
    stage: Dialogues,
    user: Speaker,
    agent: Speaker,
    moderator: Moderator | None,
    specs: Sequence[rules.Spec],
    progress: Any,
) -> list[Row]:
    """Plans, plays and judges some dialogues; a plan that was not usable is a row with its reason under `ended`."""
    with progress.phase("planning"):
        plans, faults = make_plans(stage, agent, specs)
    planned = [(spec, plans[spec["id"]]) for spec in specs if spec["id"] in plans]
    with progress.phase("talking"):
        talks = {held.spec["id"]: held for held in talk.hold(stage, user, agent, planned)}
    rows = []
    for spec in specs:
        each = talks.get(spec["id"]) or talk.Talk(spec, "", ended=f"plan: {faults.get(spec['id'])}")
        rows.append(talk.row_of(each, stage, agent.name, VERSION))
    with progress.phase("judging"):
        held = [row for row in rows if row["messages"]]
        judge(stage, agent, held)
        moderate(moderator, held)
    return rows


def make_plans(
    stage: Dialogues, planner: Speaker, specs: Sequence[rules.Spec]
) -> tuple[dict[int, str], dict[int, str]]:
    """The plan of each spec by its id, after at most three attempts, and the last fault of those without one."""
    texts, plans, faults = PROMPTS[stage.prompts], {}, {}
    left = list(specs)
    for attempt in range(talk.ATTEMPTS):
        asks = []
        for spec in left:
            content = texts.plan.format(
                domain=spec["domain"], subarea=spec["subarea"], persona=spec["persona"], goal=spec["goal"],
                principles=rules.numbered(spec["principle"]), exchanges=max(1, spec["target_turns"] // 2),
                mode=texts.violate if spec["mode"] == "violate" else texts.cooperate,
            )  # fmt: skip
            asks.append(Ask([{"role": "user", "content": content}], talk.number_of(spec["id"], attempt)))
        answers = answer_all(planner, asks, Manner(stage.plan_tokens, stage.plan_temperature, stage.top_p))
        again = []
        for spec, said in zip(left, answers, strict=True):
            plan = said.text.strip()
            fault = said.failed or ("cut" if said.cut else rules.plan_fault(plan, spec["principle"]))
            if fault is None:
                plans[spec["id"]] = plan
            else:
                faults[spec["id"]] = fault
                again.append(spec)
        left = again
    return plans, {spec["id"]: faults[spec["id"]] for spec in left}


def judge(stage: Dialogues, speaker: Speaker, rows: Sequence[Row]) -> None:
    """Adds the judged violations of the last turn; a critique that cannot be read is asked for once more, greedily."""
    left = list(rows)
    for attempt in range(2):
        asks = []
        for row in left:
            number = talk.number_of(row["id"], talk.JUDGE + attempt)
            asks.append(critique_ask(stage.prompts, row["messages"], row["principle"], number))
        answers = answer_all(speaker, asks, Manner(stage.judge_tokens, 0.0))
        for row, said in zip(left, answers, strict=True):
            found = None if said.failed else rules.violations_of(said.text, len(row["principle"]))
            row["judgement"] = said.text.strip()
            row["judged"] = None if found is None else [row["pids"][i - 1] for i in found]
            row["parse_error"] = found is None
            row["is_violation"] = bool(found)
        left = [row for row in left if row["parse_error"]]


def moderate(moderator: Moderator | None, rows: Sequence[Row]) -> None:
    """Adds what the moderator says of the last exchange; None without one."""
    items = [{"prompt": row["messages"][-2]["content"], "response": row["messages"][-1]["content"]} for row in rows]
    for row, found in zip(rows, moderator(items) if moderator and items else [None] * len(rows), strict=True):
        row["moderator"] = found and {field: found[field] for field in FIELDS}


def critique_ask(prompts: str, messages: Sequence[rules.Message], principles: Sequence[str], number: int) -> Ask:
    """The question whether the last turn violates a principle."""
    content = PROMPTS[prompts].critique.format(
        dialogue=rules.transcript(messages), last=messages[-1]["content"], principles=rules.numbered(principles)
    )
    return Ask([{"role": "user", "content": content}], number)


def _write(stage: Dialogues, workspace: Workspace, made: list[Row], asked: dict[str, Any]) -> dict[str, Any]:
    """Filters the dialogues and writes the files of the stage; returns its metrics."""
    what = f"stage {stage.name}"
    tests = [row for source in stage.against for row in rows_of(workspace, source, f"{what}: against")]
    others = {source.path: rows_of(workspace, source, f"{what}: compare") for source in stage.compare}
    dialogue_filters.apply(stage, made, tests)
    kept, dropped = [row for row in made if row["dropped"] is None], [row for row in made if row["dropped"] is not None]
    folder = workspace.folder(stage.name)
    files.write_lines(folder / "dialogues.jsonl", kept)
    files.write_lines(folder / "dropped.jsonl", dropped)
    files.write_lines(folder / "sft.jsonl", sft_rows(kept))
    files.write_lines(folder / "released.jsonl", map(released, kept))
    statistics = dialogue_tables.of_dialogues(made, others)
    files.write_json(folder / "stats.json", {**statistics, "asked": asked})
    write_text(folder / "tables.md", dialogue_tables.text("Dialogues", statistics))
    write_text(folder / "reading.md", dialogue_tables.reading_sheet(kept, stage.seed))
    return {**statistics["size"], "device_hours": asked["device_hours"]}


def sft_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """Conversations for SFT, without the plan; none that was judged to violate a principle."""
    for row in rows:
        if not row["is_violation"]:
            yield {"id": row["id"], "messages": row["messages"], "source": "sdsd"}


def released(row: Row) -> Row:
    """A dialogue in the published schema, in which the plan is the system message."""
    system = {"role": "system", "content": row["plan"]}
    return {"domain": row["domain"], "subarea": row["subarea"], "principle": row["principle"], "goal": row["goal"],
            "messages": [system, *row["messages"]], "is_violation": row["is_violation"],
            "is_truncated": row["is_truncated"]}  # fmt: skip
