"""The tables of the papers: which benchmarks in which settings stand in their columns, and what they average.

A suite is named on the command line (`easylm eval MODEL --suite tulu3-dev`). Its average is that of the very columns
that the paper averages; where one of them was not asked there is none.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from easylm_jax.config import Ask
from easylm_jax.evaluate import benchmark
from easylm_jax.evaluate.statistics import Estimate, weighted
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: a benchmark, or several columns combined."""

    title: str
    of: tuple[str | Column, ...]
    """Benchmarks (`arc_challenge:mc`) or columns."""
    combine: Literal["mean", "max"] = "mean"
    """"mean" of the parts, or the "max" (OLMES: the better of two ways to ask)."""

    def benchmarks(self) -> Iterator[str]:
        """The benchmarks that the column needs."""
        for part in self.of:
            if isinstance(part, str):
                yield part
            else:
                yield from part.benchmarks()

    def weights(self, scores: Mapping[str, float]) -> list[tuple[str, float]]:
        """(benchmark, weight): the column is Σ weight · score. Of a "max" the best part stands alone, so that the list
        has the same length whatever the scores are."""
        parts = [[(part, 1.0)] if isinstance(part, str) else part.weights(scores) for part in self.of]
        if self.combine == "max":
            return max(parts, key=lambda part: sum(weight * scores[name] for name, weight in part))
        return [(name, weight / len(parts)) for part in parts for name, weight in part]


@dataclasses.dataclass(frozen=True)
class Suite:
    """The columns of a table."""

    title: str
    source: str
    """The paper and its table."""
    columns: tuple[Column, ...]
    averaged: bool = True
    """Whether the paper averages the columns."""

    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks of all columns, each once."""
        return tuple(dict.fromkeys(name for column in self.columns for name in column.benchmarks()))

    def missing(self) -> tuple[str, ...]:
        """Benchmarks of the suite that do not exist."""
        there = set(dict(benchmark.everything()))
        return tuple(name for name in self.benchmarks() if name not in there)


def one(title: str, name: str) -> Column:
    """A column that is one benchmark."""
    return Column(title, (name,))


def olmes(title: str, name: str) -> Column:
    """The better of a benchmark as multiple choice and as cloze, with five examples each (arXiv 2406.08446)."""
    return Column(title, (f"{name}:mc5", f"{name}:rc5"), "max")


_SAFETY = Column("Safety", (
    "xstest:tulu3", "harmbench", "dan", "jailbreak_trigger", "wildjailbreak", "wildguard_test",
))  # fmt: skip

SUITES: dict[str, Suite] = {
    "tulu25": Suite(
        "Tülu 2.5", "arXiv 2406.09279, Table 1; the average is that of the six categories (spec tulu25 §10)",
        (
            one("Factuality", "mmlu:tulu25"),
            Column("Reasoning", ("gsm8k:tulu25", "bbh:tulu25")),
            Column("Coding", ("humaneval_plus:tulu25", "mbpp_plus:tulu25")),
            one("Truthfulness", "truthfulqa:tulu25"),
            Column("Safety", ("toxigen", "xstest:tulu25")),
            Column("Instruction following", ("alpaca_eval:1", "alpaca_eval:2", "ifeval")),
        ),
    ),
    "molmo": Suite(
        "Molmo", "arXiv 2409.17146, Table 1; VQA v2, DocVQA and InfographicVQA on their validation sets",
        tuple(one(title, name) for title, name in (
            ("AI2D", "ai2d"), ("ChartQA", "chartqa"), ("VQA v2", "vqa2"), ("DocVQA", "docvqa"),
            ("InfographicVQA", "infographic_vqa"), ("TextVQA", "textvqa"), ("RealWorldQA", "realworldqa"),
            ("MMMU", "mmmu"), ("MathVista", "mathvista"), ("CountBenchQA", "countbench_qa"),
            ("PixMo-Count", "pixmo_count"),
        )),
    ),
    "tulu3-dev": Suite(
        "Tülu 3, development", "arXiv 2411.15124, Table 24 (spec tulu3 §8.1)",
        (
            one("MMLU", "mmlu:tulu3"), one("PopQA", "popqa:tulu3"), one("TruthfulQA", "truthfulqa:tulu3"),
            one("BBH", "bbh:tulu3"), one("DROP", "drop:tulu3"), one("MATH", "math:tulu3"),
            one("GSM8K", "gsm8k:tulu3"), one("HumanEval", "humaneval:tulu3"),
            one("HumanEval+", "humaneval_plus:tulu3"), one("IFEval", "ifeval"),
            one("AlpacaEval 2", "alpaca_eval:2"), _SAFETY,
        ),
    ),
    "tulu3-safety": Suite(
        "Tülu 3, safety", "arXiv 2411.15124, Table 25",
        tuple(one(title, name) for title, name in (
            ("HarmBench", "harmbench"), ("XSTest", "xstest:tulu3"), ("WildGuardTest", "wildguard_test"),
            ("Jailbreak Trigger", "jailbreak_trigger"), ("DAN", "dan"), ("WildJailbreakTest", "wildjailbreak"),
        )),
    ),
    "tulu3-unseen": Suite(
        "Tülu 3, unseen", "arXiv 2411.15124, Table 33 (spec tulu3 §8.2)",
        tuple(one(title, name) for title, name in (
            ("GPQA", "gpqa:tulu3"), ("MMLU-Pro", "mmlu_pro:tulu3"), ("AGIEval", "agieval:tulu3"),
            ("DeepMind Mathematics", "deepmind_math:tulu3"), ("BigCodeBench-Hard", "bigcodebench_hard"),
            ("IFEval-OOD", "ifeval_ood"), ("HREF", "href"),
        )),
    ),
    "olmo2-base": Suite(
        "OLMo 2, base models", "arXiv 2501.00656, Table 9 (spec olmo §16, §17.1)",
        (
            olmes("MMLU", "mmlu"), olmes("ARC-Challenge", "arc_challenge"), olmes("HellaSwag", "hellaswag"),
            olmes("WinoGrande", "winogrande"), one("NaturalQuestions", "nq:olmes"), one("DROP", "drop:olmes"),
            one("AGIEval", "agieval:olmes"), one("GSM8K", "gsm8k:olmes"), one("MMLU-Pro", "mmlu_pro:olmes"),
            one("TriviaQA", "triviaqa:olmes"),
        ),
    ),
    "olmo2-instruct": Suite(
        "OLMo 2, instruct models", "arXiv 2501.00656, Table 16",
        (
            one("AlpacaEval 2", "alpaca_eval:2"), one("BBH", "bbh:tulu3"), one("DROP", "drop:tulu3"),
            one("GSM8K", "gsm8k:tulu3"), one("IFEval", "ifeval"), one("MATH", "math:tulu3"),
            one("MMLU", "mmlu:tulu3"), _SAFETY, one("PopQA", "popqa:tulu3"), one("TruthfulQA", "truthfulqa:tulu3"),
        ),
    ),
    "olmes": Suite(
        "OLMES", "arXiv 2406.08446, Table 1",
        tuple(olmes(title, name) for title, name in (
            ("ARC-Challenge", "arc_challenge"), ("ARC-Easy", "arc_easy"), ("BoolQ", "boolq"),
            ("CommonsenseQA", "csqa"), ("HellaSwag", "hellaswag"), ("MMLU", "mmlu"), ("OpenBookQA", "openbookqa"),
            ("PIQA", "piqa"), ("Social IQa", "socialiqa"), ("WinoGrande", "winogrande"),
        )),
    ),
    "bits-per-byte": Suite(
        "Bits per byte of right answers", "for evaluation while training (spec olmo §16)",
        tuple(one(title, f"{name}:bpb") for title, name in (
            ("ARC-Challenge", "arc_challenge"), ("ARC-Easy", "arc_easy"), ("HellaSwag", "hellaswag"), ("MMLU", "mmlu"),
            ("WinoGrande", "winogrande"), ("PIQA", "piqa"), ("Social IQa", "socialiqa"), ("CommonsenseQA", "csqa"),
            ("GSM8K", "gsm8k"), ("MATH", "math"), ("HumanEval", "humaneval"), ("MBPP", "mbpp"), ("DROP", "drop"),
            ("NaturalQuestions", "nq"), ("TriviaQA", "triviaqa"),
        )), averaged=False,
    ),
    "rlvr": Suite(
        "Verifiable rewards", "what the RLVR stages of Tülu 3 and OLMo 2 are evaluated on (spec tulu3 §6.1)",
        (one("GSM8K", "gsm8k"), one("MATH-500", "math500"), one("IFEval", "ifeval")), averaged=False,
    ),
}  # fmt: skip


def load(name: str) -> Suite:
    """The suite `name`.

    Raises:
        UserError: there is none (the message names the nearest), or a benchmark of it does not exist.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(SUITES)}"
        raise UserError(f"no suite {name!r}; {hint}")
    missing = SUITES[name].missing()
    if missing:
        raise UserError(f"suite {name} needs {', '.join(missing)}, which this version lacks; name benchmarks by --task")
    return SUITES[name]


def asks(name: str, **settings: Any) -> tuple[Ask, ...]:
    """The benchmarks of a suite for `Evaluate.benchmarks`, each with these settings (fields of `Ask`)."""
    return tuple(Ask(one, **settings) for one in load(name).benchmarks())


def for_stage(name: str, asked: Iterable[str], stage: str) -> Suite:
    """The suite of a stage's table, which asks these benchmarks.

    Raises:
        UserError: there is no such suite, the paper does not average it, or the stage asks other benchmarks.
    """
    suite = load(name)
    if not suite.averaged:
        raise UserError(f"stage {stage}: the columns of suite {name} have no average; leave `suite` out")
    other = sorted(set(suite.benchmarks()) ^ set(asked))
    if other:
        raise UserError(
            f"stage {stage}: suite {name} {'has' if other[0] in suite.benchmarks() else 'lacks'} {other[0]}, its "
            f"benchmarks are suites.asks({name!r})"
        )
    return suite


def table(suite: Suite, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The columns of a suite and their average, from the results of benchmarks by name.

    A column of which something was not asked is None, and so is the average then.
    """
    columns = {column.title: _estimate(column, results) for column in suite.columns}
    found = [estimate for estimate in columns.values() if estimate is not None]
    whole = suite.averaged and len(found) == len(columns)
    average = weighted((one, 1 / len(found)) for one in found) if whole else None
    units = {column.title: _unit(column, results) for column in suite.columns}
    shown = {
        title: None if estimate is None else {"score": estimate.value, "stderr": estimate.stderr, "unit": units[title]}
        for title, estimate in columns.items()
    }
    return {
        "source": suite.source, "columns": shown, "score": None if average is None else average.value,
        "stderr": None if average is None else average.stderr,
    }  # fmt: skip


def _unit(column: Column, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The unit of the first part of a column that was asked."""
    asked = (results[name] for name in column.benchmarks() if name in results)
    return next((found["units"][found["metric"]] for found in asked), "")


def _estimate(column: Column, results: Mapping[str, Mapping[str, Any]]) -> Estimate | None:
    if any(name not in results for name in column.benchmarks()):
        return None
    parts = column.weights({name: found["score"] for name, found in results.items()})
    return weighted((Estimate(results[name]["score"], results[name]["stderr"]), weight) for name, weight in parts)
