"""A small preference pipeline over one stub server: what it answers, its recipe, and what its files must hold."""

import collections
import hashlib
import json
from pathlib import Path

from easylm_jax.config import (
    Binarise,
    PersonaPrompts,
    PoolModel,
    PromptPart,
    Rate,
    Recipe,
    Respond,
    SelectPrompts,
    SelfInstruct,
    Server,
    Source,
)
from easylm_jax.experiment import Experiment

SHOWN = {"alpha": 2, "beta": 3, "gamma": 4, "own": 3}  # how good each model's answers are


def digest(body):
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def reply_to(body):
    """The stub's answer, which depends on the whole request."""
    last, mark = body["messages"][-1]["content"], digest(body)
    if last.startswith("Below are a request"):
        answers = last.partition("===== end")[0].split("===== answer ")[1:]
        blocks = []
        for number, text in enumerate(answers, 1):
            worth = next((worth for name, worth in SHOWN.items() if f"says {name}" in text), 1)
            blocks.append(f"Answer {number}\nRating: {min(5, worth + int(mark[number], 16) % 2)}\nReason: so.")
        return "I cannot say." if mark.startswith("0") else "\n\n".join(blocks)
    if "school arithmetic" in last:
        return f"A shop has {int(mark[:4], 16)} apples and sells {int(mark[4:6], 16)}. How many are left?"
    if "end with a line of ####" in last:
        return "They are left.\n#### 7" if int(mark[0], 16) % 4 else "I do not know."
    if "Continue the list" in last:
        return "\n".join(
            f"{9 + i}. Explain what {mark[i : i + 6]} and {mark[-i - 8 : -i - 1]} are about" for i in range(4)
        )
    return f"{mark[:8]} says {body['model']}."


def seeds(folder: Path):
    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def chat(i):
        turns = [("user", f"question {i} about thing {i * 7}"), ("assistant", f"old answer {i}")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    write("sft.jsonl", [chat(i) for i in range(12)])
    write("wild.jsonl", [chat(i) for i in range(6, 20)])
    write("personas.jsonl", [{"persona": text} for text in ("a baker", "a pilot", "a nurse")])
    write("tasks.jsonl", [{"instruction": f"Describe the {text} of a town"} for text in ("history", "trade", "food")])


def recipe(folder: Path, url: str, *, batch=4, concurrency=3, attempts=4, timeout=5.0):
    def server(name):
        return Server(url=url, model=name, concurrency=concurrency, attempts=attempts, timeout=timeout)

    def source(name):
        return Source(str(folder / name))

    pool = (*(PoolModel(name, server=server(name)) for name in ("alpha", "beta", "gamma")),
            PoolModel("own", server=server("own"), on_policy=True, always=True))  # fmt: skip
    ratings = tuple(Source(f"stage:rate-{judge}/ratings.jsonl") for judge in ("a", "b"))
    return Recipe("preferences", stages=(
        SelectPrompts("prompts", used=(source("sft.jsonl"),), parts=(
            PromptPart("reused", source=source("sft.jsonl"), count=6),
            PromptPart("instructed", source=source("sft.jsonl"), count=4, instructions=(1,)),
            PromptPart("unused", source=source("wild.jsonl"), unused=True),
        )),
        Respond("respond", prompts=Source("stage:prompts/prompts.jsonl"), pool=pool, each=3, reference=True,
                max_new_tokens=64, batch=batch),
        *(Rate(f"rate-{judge}", responses=Source("stage:respond/responses.jsonl"), server=server(f"judge-{judge}"),
               batch=batch) for judge in ("a", "b")),
        Binarise("pairs", ratings=ratings),
        Binarise("on", ratings=ratings[:1], policy="on"),
        Binarise("half", ratings=ratings[:1], on_share=0.5),
        PersonaPrompts("persona", server=server("writer"), personas=source("personas.jsonl"), skill="grade_school",
                       count=8, batch=batch),
        SelfInstruct("self", server=server("lister"), tasks=source("tasks.jsonl"), count=6, batch=2, rounds=4),
    ))  # fmt: skip


FILES = ("prompts/prompts.jsonl", "respond/responses.jsonl", "respond/dropped.jsonl", "rate-a/ratings.jsonl",
         "rate-b/ratings.jsonl", "pairs/pairs.jsonl", "pairs/best.jsonl", "pairs/tables.md", "on/pairs.jsonl",
         "half/pairs.jsonl", "persona/sft.jsonl", "persona/dropped.jsonl", "self/sft.jsonl",
         "self/dropped.jsonl")  # fmt: skip


def run(made: Recipe, out: Path) -> Path:
    """Runs all stages; returns the folder of the recipe."""
    experiment = Experiment(made, out)
    for stage in experiment.in_order():
        experiment.run(stage)
    return experiment.root


def rows(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def no_row_twice(root: Path):
    for name in FILES:
        if name.endswith(".jsonl") and not name.startswith("self/dropped"):
            ids = collections.Counter(row["id"] for row in rows(root / name))
            assert not ids or max(ids.values()) == 1, name
