"""BigCodeBench-Hard (arXiv 2406.15877): 148 tasks that call libraries; pass@10 of 20 samples (spec tulu3 §8.2).

The sandbox has Python's standard library alone: a task whose solution or test imports another library fails there
whatever is answered. The metric "needs_library" is the share of such tasks; the score of the paper is not comparable
where it is above 0.
"""

from __future__ import annotations

import ast
import sys

from easylm_jax.config import Source
from easylm_jax.evaluate.benchmark import Benchmark, Document, Metric, Reported, Response
from easylm_jax.evaluate.benchmarks.humaneval import SAMPLED
from easylm_jax.evaluate.metrics.extraction import code_block
from easylm_jax.evaluate.metrics.programs import passes
from easylm_jax.evaluate.metrics.sampled import pass_at

_RUN = """
def _all_pass():
    import unittest
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(TestCases).run(result)
    return result.wasSuccessful() and result.testsRun > 0
"""


def _verdicts(document: Document, response: Response) -> list[bool]:
    """Whether the test cases of the task pass, each answer in a module of its own with them."""
    tests = ("assert _all_pass() is True",)
    return [passes(f"{answer}\n\n{document['test']}\n{_RUN}", tests, seconds=10.0) for answer in response.answers]


def _needs_library(document: Document, response: Response) -> float:
    names = set()
    for text in (document.get("code_prompt", "") + "\n    pass", document["test"]):
        try:
            found = list(ast.walk(ast.parse(text)))
        except SyntaxError:
            continue
        names |= {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in found if isinstance(node, ast.ImportFrom)}
    return float(any(name.partition(".")[0] not in sys.stdlib_module_names for name in names if name))


BENCHMARK = Benchmark(
    title="BigCodeBench-Hard",
    documents=(Source("hf:bigcode/bigcodebench-hard:v0.1.4"),),
    size=148,
    columns=("instruct_prompt", "test", "task_id"),
    request="generate",
    prompt=lambda document: document["instruct_prompt"],
    label=lambda document: document["task_id"],
    chat=True,
    samples=20,
    sampling=SAMPLED,
    extract=code_block,
    metrics=(
        Metric("pass@10", pass_at(10, _verdicts), of_document=True),
        Metric("pass@1", pass_at(1, _verdicts), of_document=True),
        Metric("needs_library", _needs_library, of_document=True, lower=True),
    ),
    published=(
        Reported("Tülu 3 8B", 0.074, "arXiv 2411.15124, Table 33"),
        Reported("Tülu 3 70B", 0.216, "arXiv 2411.15124, Table 33"),
    ),
)
