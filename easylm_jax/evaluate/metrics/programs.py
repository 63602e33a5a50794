"""HumanEval, MBPP and their EvalPlus versions: whether a program passes its tests, in the sandbox of `rewards.code`.

Programs run only where EASYLM_RUN_CODE is 1 (docs/rlvr.md).
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from typing import Any

from easylm_jax.evaluate.benchmark import Response
from easylm_jax.rewards import code

SECONDS = 5.0  # of CPU time for the tests of a program


@functools.lru_cache(maxsize=4096)  # several metrics ask for the same verdict
def passes(program: str, tests: tuple[str, ...], seconds: float = SECONDS) -> bool:
    """Whether a program passes all tests, each of which is Python source that raises where it fails.

    Raises:
        UserError: running programs is disabled or cannot be isolated on this machine.
    """
    response = program if "```" in program else f"```python\n{program}\n```"
    return code.code(response, {"ground_truth": list(tests)}, seconds=seconds) == 1.0


def humaneval_program(document: Mapping[str, Any], answer: str) -> str:
    """The program of a completion: the answer itself where it defines the function, else the prompt followed by it."""
    if f"def {document['entry_point']}(" in answer:
        return imports(document["prompt"]) + answer
    return document["prompt"] + answer


def humaneval_tests(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The test of a problem of HumanEval or HumanEval+: `check` applied to the function."""
    return (f"{without_numpy(document['test'])}\ncheck({document['entry_point']})",)


def humaneval_verdicts(document: Mapping[str, Any], response: Response) -> list[bool]:
    """Whether each sample passes."""
    tests = humaneval_tests(document)
    return [passes(humaneval_program(document, str(answer)), tests) for answer in response.answers]


def mbpp_tests(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The tests of a problem of MBPP (`test_list`) or MBPP+ (`test`, or `base_input` and `plus_input`)."""
    imports_first = "".join(f"{line}\n" for line in document.get("test_imports") or ())
    if document.get("test_setup_code"):
        imports_first += document["test_setup_code"] + "\n"
    if document.get("plus_input") is not None or document.get("base_input") is not None:
        return (plus_test(document),)
    if document.get("test"):
        return (imports_first + without_numpy(document["test"]),)
    return tuple(imports_first + test for test in document["test_list"])


def mbpp_verdicts(document: Mapping[str, Any], response: Response) -> list[bool]:
    """Whether each sample passes."""
    tests = mbpp_tests(document)
    return [passes(str(answer), tests) for answer in response.answers]


def plus_test(document: Mapping[str, Any]) -> str:
    """The test that compares a program with the canonical solution on all inputs of a problem of EvalPlus, numbers
    within `atol` (1e-6 for floats). Inputs are tried as JSON has them, with tuples for lists, and with numbers for
    texts: the first form that the canonical solution takes is used."""
    inputs = [*(document.get("base_input") or ()), *(document.get("plus_input") or ())]
    return PLUS_TEST.format(
        solution=repr(document["canonical_solution"]), name=document["entry_point"], inputs=repr(inputs),
        atol=document.get("atol") or 0,
    )  # fmt: skip


# Equality of results as EvalPlus defines it: floats within a tolerance, everything else exactly; of a regular
# expression's match, whether there is one.
PLUS_TEST = """
from copy import deepcopy as _copy
from math import inf, nan

def _close(x, y, atol):
    if hasattr(y, "span"):
        return x is not None
    if x == y:
        return True
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        return len(x) == len(y) and all(_close(a, b, atol) for a, b in zip(x, y))
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (x, y))
    if not numbers or not (atol or isinstance(x, float) or isinstance(y, float)):
        return False
    return (x != x and y != y) or abs(x - y) <= (atol or 1e-6) + 1e-7 * abs(y)

def _tuples(x):
    return tuple(map(_tuples, x)) if isinstance(x, list) else x

def _forms(given):
    yield given
    yield [_tuples(one) for one in given]
    yield [given[0], *map(_tuples, given[1:])]
    yield [_tuples(given[0]), *given[1:]]
    yield [complex(one) for one in given]

def _first(given):
    for form in _forms(given):
        try:
            return form, _right(*_copy(form))
        except TypeError:
            pass
    raise AssertionError("the canonical solution takes no form of the input")

_space = {{}}
exec({solution}, _space)
_right = _space[{name!r}]
for _given in {inputs}:
    _form, _result = _first(_given)
    assert _close({name}(*_copy(_form)), _result, {atol})
"""


def without_numpy(test: str) -> str:
    """A published test without its import of numpy, which the sandbox does not have. EvalPlus's tests call
    `np.allclose` and `isinstance(…, np.ndarray)` only, for which a stand-in is defined."""
    if "import numpy" not in test:
        return test
    lines = [line for line in test.split("\n") if line.strip() not in ("import numpy as np", "import numpy")]
    return NUMPY + "\n".join(lines)


NUMPY = """
class np:
    class ndarray:
        pass
    float32 = float64 = float
    inf = float("inf")
    def allclose(x, y, rtol=1e-5, atol=1e-8):
        if isinstance(y, (list, tuple)):
            return len(x) == len(y) and all(np.allclose(a, b, rtol, atol) for a, b in zip(x, y))
        return x == y or (x != x and y != y) or abs(x - y) <= atol + rtol * abs(y)
"""


def imports(prompt: str) -> str:
    """The import lines at the top level of a prompt, which a rewritten function may need."""
    try:
        tree = ast.parse(prompt + "    pass\n")
    except SyntaxError:
        tree = ast.Module([], [])
    found = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "".join(f"{ast.unparse(node)}\n" for node in found)
