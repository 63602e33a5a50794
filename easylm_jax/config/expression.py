"""Reward expressions: verifiers combined by weights, sums, gates and caps, in Python syntax.

    "gsm8k"                                 one verifier
    "10 * math"                             its weight
    "format and not python"                 gates: `and` multiplies, `or` takes the larger, `not` is 1 − x
    "math if r1_format else 0"              one score where another is above 0
    "min(1, gsm8k + 0.5 * r1_format)"       a cap
    "math + overlong(2048, 512)"            options of a verifier
    "10 * 'my.module:check'"                a function of the user; alone, it needs no quotes
    "ifeval + 1 if model > 7 else ifeval"   `model` is the reward model's score, `judge` the judge model's
    "moderator * judge"                     `moderator` is the probability that a response is harmless

An expression is parsed once, and its verifiers are looked up then, so that a misspelt name is an error before any work.
It is evaluated by walking the syntax tree; it is never executed as Python.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping

from models.errors import UserError

MODEL, JUDGE, MODERATOR = MODELS = ("model", "judge", "moderator")  # scores of models; all other names are verifiers
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}
_ARITHMETIC: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_COMPARISONS: dict[type, Callable[[float, float], bool]] = {
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_OWN = re.compile(r"\s*[A-Za-z_][\w.-]*:[A-Za-z_]\w*")  # module:function, with or without options
_LONGEST = 2000


class Expression:
    """A parsed reward expression.

    Attributes:
        text: the source text.
        calls: the verifiers that it needs, each once, as text for `registry.verifier` with their options.
        uses_model, uses_judge, uses_moderator: whether it contains the score of that model.

    Raises:
        UserError: the text is not a valid reward expression.
    """

    def __init__(self, text: str):
        self.text = text
        if len(text) > _LONGEST:
            raise UserError(f"reward: an expression of {len(text)} characters; {_LONGEST} is the most")
        own = _OWN.match(text)
        quoted = f"'{own[0].strip()}'{text[own.end() :]}" if own else text
        try:
            self._root = ast.parse(quoted.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._wrong(str(error).partition(" (")[0]) from None
        self._calls: dict[str, None] = {}
        names: set[str] = set()
        self._check(self._root, names)
        self.calls = tuple(self._calls)
        self.uses_model, self.uses_judge, self.uses_moderator = (name in names for name in MODELS)

    def __call__(self, values: Mapping[str, float]) -> float:
        """The value of the expression, given a number for each of `calls`, and for those of `MODELS` that are used."""
        return self._value(self._root, values)

    def _wrong(self, why: str) -> UserError:
        return UserError(f"reward: {self.text[:200]!r} is no reward expression: {why}")

    def _check(self, node: ast.AST, names: set[str]) -> None:
        """Collects the verifiers and models that are used; raises `UserError` for what cannot be evaluated."""
        if isinstance(node, ast.Name) and node.id in MODELS:
            names.add(node.id)
        elif (called := _call_of(node)) is not None:
            self._calls[called] = None
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
                raise self._wrong(f"{node.value!r} is neither a number nor module:function")
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            divisor = node.right.value if isinstance(node.right, ast.Constant) else None
            if isinstance(node.op, ast.Div) and not (isinstance(divisor, (int, float)) and divisor):
                raise self._wrong("only a number other than 0 can be divided by")
        elif isinstance(node, ast.Compare):
            if not all(type(op) in _COMPARISONS for op in node.ops):
                raise self._wrong("compare with <, <=, >, >=, == or !=")
        elif isinstance(node, ast.UnaryOp):
            if not isinstance(node.op, (ast.Not, ast.USub)):
                raise self._wrong(f"no {type(node.op).__name__} here")
        elif not isinstance(node, (ast.BoolOp, ast.IfExp)) and not _is_function(node):
            raise self._wrong(f"{ast.unparse(node)[:60]!r} cannot stand in one")
        for child in _parts(node):
            self._check(child, names)

    def _value(self, node: ast.AST, values: Mapping[str, float]) -> float:
        if isinstance(node, ast.Constant) and not isinstance(node.value, str):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name) and node.id in MODELS:
            return float(values[node.id])
        if (called := _call_of(node)) is not None:
            return float(values[called])
        parts = [self._value(child, values) for child in _parts(node)]
        if isinstance(node, ast.BinOp):
            return float(_ARITHMETIC[type(node.op)](*parts))
        if isinstance(node, ast.BoolOp):
            return _product(parts) if isinstance(node.op, ast.And) else max(parts)
        if isinstance(node, ast.UnaryOp):
            return 1.0 - parts[0] if isinstance(node.op, ast.Not) else -parts[0]
        if isinstance(node, ast.IfExp):
            test, then, otherwise = parts
            return then if test > 0 else otherwise
        if isinstance(node, ast.Compare):
            pairs = zip(node.ops, parts, parts[1:], strict=False)
            return float(all(_COMPARISONS[type(op)](left, right) for op, left, right in pairs))
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        return float(_FUNCTIONS[node.func.id](parts) if len(parts) > 1 else abs(parts[0]))


def _product(values: list[float]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product


def _is_function(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
        return False
    return not node.keywords and (len(node.args) == 1) == (node.func.id == "abs") and len(node.args) > 0


def _call_of(node: ast.AST) -> str | None:
    """The text of a node that is a verifier, with its options; None for any other node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return repr(node.value) if ":" in node.value else None
    if isinstance(node, ast.Name):
        return None if node.id in MODELS or node.id in _FUNCTIONS else node.id
    if isinstance(node, ast.Call) and not _is_function(node):
        return ast.unparse(node) if _call_of(node.func) is not None else None
    return None


def _parts(node: ast.AST) -> list[ast.AST]:
    """The operands of `node`, in the order in which `_value` uses them."""
    if _call_of(node) is not None or isinstance(node, (ast.Constant, ast.Name)):
        return []
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.BoolOp):
        return list(node.values)
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.IfExp):
        return [node.test, node.body, node.orelse]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    return list(node.args) if isinstance(node, ast.Call) else []


def parse_call(text: str) -> tuple[str, tuple, dict[str, object]]:
    """The name of one verifier call and its options: `"random(0.5)"` → ("random", (0.5,), {}).

    Raises:
        UserError: the text is not a single verifier, or an option is not a literal.
    """
    expression = Expression(text)
    root = expression._root
    if _call_of(root) is None:
        raise UserError(f"reward: {text[:200]!r} names no single verifier")
    options: tuple = ()
    named: dict[str, object] = {}
    if isinstance(root, ast.Call):
        try:
            options = tuple(ast.literal_eval(value) for value in root.args)
            named = {str(word.arg): ast.literal_eval(word.value) for word in root.keywords}
        except ValueError:
            raise UserError(f"reward: the options of {text[:200]!r} must be literals (numbers, strings, ...)") from None
        root = root.func
    name = root.value if isinstance(root, ast.Constant) else root.id if isinstance(root, ast.Name) else None
    if not isinstance(name, str):
        raise UserError(f"reward: {text[:200]!r} names no single verifier")
    return name, options, named
