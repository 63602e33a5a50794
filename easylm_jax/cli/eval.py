"""`easylm eval MODEL --task NAME[,…]`: asks a model the documents of benchmarks, without a recipe."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli import eval_routing
from easylm_jax.cli.parser import add_stop_and_seed
from easylm_jax.config.evaluate import MODERATION_SUITE, PREFERENCE_ASKS, PREFERENCE_BENCHES
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.config import Ask

# What a call evaluates, and the options that only some of these read.
BENCHMARKS, PREFERENCES, MODERATOR, ROUTING = "benchmarks", "benches of preference pairs", "moderators", "--routing"
OPTIONS = {
    BENCHMARKS: {
        "task", "shots", "shots_from", "template", "tokenizer", "steps", "judge", "moderator", "limit",
        "max_new_tokens", "max_crops", "longest_prompt", "cut_prompts", "temperature", "samples", "stop", "seed",
    },
    PREFERENCES: {
        "template", "tokenizer", "limit", "data", "languages", "reference", "ask", "beside", "compat", "seed",
    },
    MODERATOR: {"template", "tokenizer", "limit", "data"},
    ROUTING: {"steps", "texts", "tokens", "active"},
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm eval`."""
    parser.add_argument(
        "model",
        type=kinds.NAME,
        metavar="MODEL",
        nargs="?",
        help="a stage's or checkpoint's folder, or hf:FOLDER (or hf:OWNER/NAME on the hub)",
    )
    parser.add_argument(
        "--task", type=kinds.NAME, metavar="NAME[=FILE][,…]", action="append", default=[],
        help="a benchmark such as gsm8k or arc_challenge:mc, optionally with its documents in FILE; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--suite", type=kinds.NAME, metavar="NAME",
        help="the benchmarks of a paper's table, such as tulu3-dev; --task NAME=FILE then names the file of one",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true", help="print all benchmarks and suites: settings, examples, source"
    )
    parser.add_argument(
        "--shots",
        type=kinds.NATURAL,
        metavar="N",
        help="solved examples before each question (default: the benchmark's)",
    )
    parser.add_argument(
        "--shots-from", type=kinds.NAME, metavar="NAME=FILE", action="append", default=[],
        help="read the solved examples of a benchmark from FILE; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--template", metavar="NAME",
        help="chat template (default: the one the stage was trained with); none asks everything as plain text; suite "
        "wildguard: a file with the moderator's input",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", type=kinds.NAME, metavar="SPEC", help="sp:FILE or hf:FOLDER (default: the model's own)"
    )
    parser.add_argument(
        "--steps", type=kinds.NAME, metavar="all|N,…",
        help="ask these checkpoints of a stage's folder: one table and one figure",
    )  # fmt: skip
    parser.add_argument(
        "--judge", type=kinds.NAME, metavar="MODEL",
        help="who judges responses where a benchmark needs it: a model as above, https://host/v1#model, "
        "moderator:MODEL for a moderator in its own form, or hf-classifier:NAME for an encoder of transformers",
    )  # fmt: skip
    parser.add_argument(
        "--moderator", type=kinds.NAME, metavar="MODEL",
        help="safety benchmarks: also attack success and refusals where this moderator filters (docs/moderation.md)",
    )  # fmt: skip
    parser.add_argument("--limit", type=kinds.COUNT, metavar="N", help="ask only the first N documents of each task")
    parser.add_argument(
        "--max-new-tokens", type=kinds.COUNT, metavar="N", help="maximum response length (default: the benchmark's)"
    )
    parser.add_argument(
        "--max-crops", type=kinds.COUNT, metavar="N", help="the most crops of a picture (default: the benchmark's)"
    )
    parser.add_argument(
        "--longest-prompt", type=kinds.LENGTH, metavar="N",
        help="leave out prompts of more than N tokens, for a model with a short context (default: an error); the table "
        "says how many documents it is of",
    )  # fmt: skip
    parser.add_argument(
        "--cut-prompts", action="store_true",
        help="drop the beginning of a prompt that does not fit the model's context (default: an error); the table says "
        "how many documents lost it",
    )  # fmt: skip
    parser.add_argument(
        "--temperature", type=kinds.NON_NEGATIVE, metavar="T", help="sampling temperature (default: the benchmark's)"
    )
    parser.add_argument(
        "--samples", type=kinds.COUNT, metavar="N", help="responses per prompt (default: the benchmark's)"
    )
    _add_preference_arguments(parser)
    add_stop_and_seed(parser)
    parser.add_argument(
        "--out", type=kinds.OUTPUT_FOLDER, metavar="DIR", default="runs", help="folder for results (default: runs)"
    )
    parser.add_argument("--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="also write the results to FILE")
    eval_routing.add_arguments(parser)


def _add_preference_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of benches of preference pairs (`--suite m_rewardbench`)."""
    parser.add_argument(
        "--data", type=kinds.NAME, metavar="PATH",
        help="preference benches: a folder with a file for each language, or a file of pairs (or an hf: set); suite "
        "wildguard: a folder with a file for each benchmark",
    )  # fmt: skip
    parser.add_argument(
        "--languages",
        type=kinds.NAME,
        metavar="CODE,…",
        help="preference benches: only these, such as deu_Latn,kor_Hang",
    )
    parser.add_argument(
        "--reference", type=kinds.NAME, metavar="MODEL",
        help="preference benches: judge by DPO's implicit reward against this model; none is reference-free",
    )  # fmt: skip
    parser.add_argument(
        "--ask", choices=PREFERENCE_ASKS, default="pair",
        help="preference benches: how a language model judges: pairs in both orders, ratings, or the letters' logits",
    )  # fmt: skip
    parser.add_argument(
        "--beside", type=kinds.NAME, metavar="FOLDER", action="append",
        help="preference benches: also how far the verdicts agree (Cohen's κ) with those of another judge, whose "
        "results easylm eval wrote to FOLDER; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--compat", choices=("mrb",), help="preference benches: the quirks of M-RewardBench's own runner"
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm eval`: asks what is not yet known, prints the table and writes the results."""
    if arguments.list:
        _print_list()
        return 0
    evaluated = _evaluated(arguments)
    _refuse_unread(arguments, evaluated)
    if evaluated == ROUTING:
        return eval_routing.main(arguments)
    if arguments.model is None:
        raise UserError("give a MODEL, or --list for the benchmarks")
    if evaluated == PREFERENCES:
        return _judge_preferences(arguments)
    if evaluated == MODERATOR:
        return _score_moderator(arguments)
    asks = _asks(arguments)
    if not asks:
        raise UserError("nothing is asked; name a benchmark with --task, or a suite with --suite (--list names all)")
    from easylm_jax.evaluate import asking, judges
    from easylm_jax.runtime.files import write_json

    for ask in asks:
        asking.resolve(ask)  # an unknown name is an error before the model is loaded
    _check_moderator(arguments, asks)
    judge = None if arguments.judge is None else judges.judge_of(arguments.judge)
    steps = _steps(arguments)
    answered = [(step, *_ask(model, asks, arguments, judge)) for step, model in steps]
    results, folder = answered[-1][1], answered[-1][2]
    if arguments.steps is not None:
        results["steps"] = [{"step": step, **one} for step, one, _ in answered]
    write_json(folder / "results.json", results)
    print(_table(results) if arguments.steps is None else _table_of_steps(results["steps"]))
    print(f"\n{folder / 'results.json'}")
    if arguments.steps is not None:
        print(_write_figure(results["steps"], folder / "steps.html"))
    if arguments.json:
        _write(results, Path(arguments.json))
    return 0


def _evaluated(arguments: argparse.Namespace) -> str:
    """What the call evaluates: a key of `OPTIONS`."""
    if arguments.routing is not None:
        return ROUTING
    if arguments.suite in PREFERENCE_BENCHES:
        return PREFERENCES
    return MODERATOR if arguments.suite == MODERATION_SUITE else BENCHMARKS


def _refuse_unread(arguments: argparse.Namespace, evaluated: str) -> None:
    """Raises `UserError` for an option that what is evaluated does not read."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name in sorted(set().union(*OPTIONS.values()) - OPTIONS[evaluated]):
        if getattr(arguments, name) != parser.get_default(name):
            readers = ", ".join(what for what, names in OPTIONS.items() if name in names)
            raise UserError(f"--{name.replace('_', '-')} is for {readers}; for {evaluated} leave it out")


def _judge_preferences(arguments: argparse.Namespace) -> int:
    """A bench of preference pairs: prints and writes its tables."""
    from easylm_jax.evaluate.preferences import command
    from easylm_jax.runtime.monitor import counting

    options = command.Options(
        arguments.reference, arguments.ask, arguments.template, arguments.tokenizer, arguments.compat, arguments.seed
    )
    languages = arguments.languages.split(",") if arguments.languages else None
    seen: dict[str, int] = {}
    with counting(arguments.suite, None, "items") as progress:

        def show(code: str, done: int, total: int) -> None:
            seen[code] = done
            progress.update(sum(seen.values()), {})

        results, folder = command.evaluate_bench(
            arguments.model, arguments.suite, arguments.data, options, Path(arguments.out), languages=languages,
            limit=arguments.limit, beside=arguments.beside or (), progress=show,
        )  # fmt: skip
    return _show_tables(arguments, results, folder)


def _score_moderator(arguments: argparse.Namespace) -> int:
    """The benchmarks of moderators: prints and writes their tables."""
    from easylm_jax.evaluate import moderation_command
    from easylm_jax.runtime.monitor import counting

    with counting(arguments.suite, None, "rows") as progress:
        results, folder = moderation_command.evaluate(
            arguments.model, arguments.data, Path(arguments.out), template=arguments.template,
            tokenizer=arguments.tokenizer, limit=arguments.limit, progress=lambda done: progress.update(done, {}),
        )  # fmt: skip
    return _show_tables(arguments, results, folder)


def _show_tables(arguments: argparse.Namespace, results: Any, folder: Path) -> int:
    """Writes the results of a suite beside its tables, and prints these."""
    from easylm_jax.runtime.files import write_json

    write_json(folder / "results.json", results)
    print((folder / "tables.md").read_text(encoding="utf-8"))
    print(folder / "results.json")
    if arguments.json:
        _write(results, Path(arguments.json))
    return 0


def _steps(arguments: argparse.Namespace) -> list[tuple[int | None, str]]:
    """(step, model) of each checkpoint to ask."""
    if arguments.steps is None:
        return [(None, arguments.model)]
    from easylm_jax.checkpoint import store

    folder = store.checkpoints_folder(arguments.model)
    there = store.committed_steps(folder)
    wanted = there if arguments.steps == "all" else [_number(text) for text in arguments.steps.split(",")]
    missing = [step for step in wanted if step not in there]
    if missing or not wanted:
        known = f"it has {', '.join(map(str, there))}" if there else "it has none"
        raise UserError(
            f"{arguments.model} has no checkpoint of step {missing[0] if missing else arguments.steps}; {known}"
        )
    return [(step, str(folder / str(step))) for step in wanted]


def _number(text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"--steps {text!r} is neither all nor a list of steps such as 100,200")
    return int(text)


def _ask(name: str, asks: list[Ask], arguments: argparse.Namespace, judge: Any) -> tuple[dict[str, Any], Path]:
    """The results of one model, and the folder where its responses are kept."""
    from easylm_jax.checkpoint.load import load, resolve_model
    from easylm_jax.config import fields
    from easylm_jax.evaluate import harness, suites
    from easylm_jax.evaluate.identity import identity as identity_of
    from easylm_jax.evaluate.results import summary
    from easylm_jax.runtime.monitor import counting

    model = load(name, tokenizer=arguments.tokenizer)
    identity = identity_of(*resolve_model(name)[:2], model)
    folder = Path(arguments.out) / f"eval-{fields.digest(identity)[:8]}"
    answered = []
    for ask in asks:
        with counting(ask.benchmark, None, "documents") as progress:
            answered.append(harness.ask_model(
                model, ask, folder, identity=identity, seed=arguments.seed, longest_prompt=arguments.longest_prompt,
                judge=judge, progress=functools.partial(_show, progress),
            ))  # fmt: skip
    results = summary(name, answered, arguments.seed, arguments.judge)
    if arguments.moderator is not None:
        _guard(results, answered, arguments.moderator)
    if arguments.suite is not None:
        by_name = {task["task"]: task for task in results["tasks"]}
        results["averages"][arguments.suite] = suites.table(suites.load(arguments.suite), by_name)
    return results, folder


def _check_moderator(arguments: argparse.Namespace, asks: Sequence[Ask]) -> None:
    if arguments.moderator is None:
        return
    from easylm_jax.evaluate.benchmark import load

    if arguments.judge in (arguments.moderator, f"moderator:{arguments.moderator}"):
        raise UserError("--moderator and --judge are one model, with which no attack can succeed; name another judge")
    if not any(load(ask.benchmark).harmful for ask in asks):
        raise UserError("--moderator is for safety benchmarks, such as --task wildjailbreak,harmbench")


def _guard(results: dict[str, Any], answered: Sequence[Any], moderator: str) -> None:
    """Adds to each safety benchmark what filters by the moderator make of the same responses, and prints it."""
    from easylm_jax.evaluate import guarded
    from easylm_jax.rewards.moderator import load_moderator

    classify, tables = load_moderator(moderator), dict[str, Any]()
    for task, asked in zip(results["tasks"], answered, strict=True):
        if asked.benchmark.harmful is not None:
            tables[task["task"]] = task["guarded"] = guarded.table(guarded.exchanges_of(asked, classify))
    print(guarded.markdown(tables) + "\n")


def _show(progress: Any, done: int, total: int) -> None:
    progress.update(done, {})


def _asks(arguments: argparse.Namespace) -> list[Ask]:
    """What the options ask for: the benchmarks of the suite, whose files `--task NAME=FILE` may name, and the tasks."""
    from easylm_jax.config import Ask

    shots_from = dict(_named(text, "--shots-from") for text in arguments.shots_from)
    named = [part.partition("=")[::2] for one in arguments.task for part in one.split(",") if part]
    if arguments.suite is not None:
        from easylm_jax.evaluate import suites

        members, files = suites.load(arguments.suite).benchmarks(), dict(named)
        further = [(name, path) for name, path in named if name not in _known(members)]
        named = [(name, files.get(name, files.get(name.partition(":")[0], ""))) for name in members] + further
    unused = set(shots_from) - _known(name for name, _ in named)
    if unused:
        raise UserError(f"--shots-from names {min(unused)}, which is no --task")
    return [
        Ask(
            name, file=path or None, shots=arguments.shots, limit=arguments.limit, template=arguments.template,
            shots_from=shots_from.get(name, shots_from.get(name.partition(":")[0])), samples=arguments.samples,
            max_new_tokens=arguments.max_new_tokens, temperature=arguments.temperature,
            stop_strings=tuple(arguments.stop), cut_prompts=arguments.cut_prompts, max_crops=arguments.max_crops,
        )
        for name, path in named
    ]  # fmt: skip


def _known(names: Iterable[str]) -> set[str]:
    """Names of benchmarks with and without their settings."""
    return {part for name in names for part in (name, name.partition(":")[0])}


def _named(text: str, option: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UserError(f"{option} {text!r} is not NAME=FILE")
    return name, path


def _table(results: dict[str, Any]) -> str:
    """The scores as text, with their standard errors; of a suite its columns and average."""
    lines = [(results["model"], "metric", "score", "n")]
    for task in results["tasks"]:
        for name, one in task["metrics"].items():
            scale = 100 if task["units"][name] == "share" else 1
            count = f"{task['n']:,}" + (f", {task['cut']:,} cut" if task["cut"] else "")
            lines.append((task["task"] if name == task["metric"] else "", name, _score(one, scale), count))
    for name, table in results["averages"].items():
        for title, one in table["columns"].items():
            scale = 100 if one is None or one["unit"] == "share" else 1
            lines.append((f"{name}: {title}", "", _score(one, scale), ""))
        lines.append((f"{name}: average", "", _score(table) if table["score"] is not None else "–", ""))
    return _aligned(lines, "<<>")


def _score(one: dict[str, Any] | None, scale: float = 100) -> str:
    return "–" if one is None else f"{scale * one['score']:.2f} ± {scale * one['stderr']:.2f}"


def _table_of_steps(steps: list[dict[str, Any]]) -> str:
    """A row for each checkpoint, a column for each task."""
    lines = [("step", *(task["task"] for task in steps[0]["tasks"]))]
    for one in steps:
        scales = [100 if task["units"][task["metric"]] == "share" else 1 for task in one["tasks"]]
        scores = (_score(task, scale) for task, scale in zip(one["tasks"], scales, strict=True))
        lines.append((str(one["step"]), *scores))
    return _aligned(lines, ">")


def _aligned(lines: Sequence[tuple[str, ...]], sides: str) -> str:
    """Columns of text, each aligned to its side, "<" or ">"; those after `sides` as its last one."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = sides.ljust(len(widths), sides[-1])
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )


def _write_figure(steps: list[dict[str, Any]], path: Path) -> Path:
    """A page with the scores of all tasks against the step."""
    from easylm_jax.report import html, plots

    titles = [(task["task"], task["units"][task["metric"]]) for task in steps[0]["tasks"]]
    series = [
        plots.Series(
            title, [(float(one["step"]), one["tasks"][at]["score"] * (100 if unit == "share" else 1)) for one in steps],
            colour=at % plots.COLOURS, look="both",
        )
        for at, (title, unit) in enumerate(titles)
    ]  # fmt: skip
    chart = plots.line_chart(series, x_label="step", y_label="score")
    facts = [("checkpoints", str(len(steps))), ("documents", str(sum(task["n"] for task in steps[0]["tasks"])))]
    page = html.document(
        "Scores by checkpoint", steps[-1]["model"], facts, "", [("Scores", f"<figure>{chart}</figure>")]
    )
    path.write_text(page, encoding="utf-8")
    return path


def _print_list() -> None:
    from easylm_jax.evaluate import benchmark, suites

    lines = [("benchmark", "request", "documents", "examples", "metrics", "source")]
    for name, one in benchmark.everything():
        size = "–" if one.size is None else f"{one.size:,}"
        asked = size if one.sample is None else f"{one.sample[0]:,} of {size}"
        first = one.documents[0]
        source = first.path + (f" ({first.subset})" if first.subset else "")
        more = f" and {len(one.documents) - 1} more" if len(one.documents) > 1 else ""
        metrics = ", ".join(metric.name for metric in one.metrics)
        lines.append((name, one.request, asked, str(one.shots), metrics, source + more))
    print(_aligned(lines, "<<>><<"))
    print(f"\nbenches of preference pairs, by --suite and --data: {', '.join(PREFERENCE_BENCHES)}")
    print(f"benchmarks of moderators, by --suite {MODERATION_SUITE} and --data")
    for name, suite in suites.SUITES.items():
        lacks = f"; lacks {', '.join(suite.missing())}" if suite.missing() else ""
        print(f"\nsuite {name}: {suite.title} ({suite.source}){lacks}\n  {', '.join(suite.benchmarks())}")


def _write(results: dict[str, Any], target: Path) -> None:
    from easylm_jax.runtime.files import write_json

    try:
        write_json(target, results)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; give another file with --json") from error
