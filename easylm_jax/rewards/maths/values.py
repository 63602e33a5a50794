"""Whether two expressions have the same value: exactly where they are rational, else to many digits.

Variables are given numbers: expressions that agree at several points of no special kind are taken as equal. Values are
rational numbers as long as the expression allows, so that 1/3 is not 0.3333 and a hundred digits are a hundred
digits. Where roots, π or functions come in, they are computed to more digits than any number on the way has, so that
a difference in the last place of a large one is seen. Everything has a bound: bits, digits, the size of exponents.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from easylm_jax.rewards.maths.parse import Node
from easylm_jax.rewards.maths.tokens import Unreadable

_MOST_BITS = 30_000  # of an exact number
_MOST_DIGITS = 400  # of a number computed to so many digits, and of the range between the largest and the smallest
_LARGEST_FACTORIAL = 2500
_POINTS, _TRIES = 3, 7
_SPARE = 30  # digits beyond the range of the numbers
_STEP = Fraction(6180339887, 10**10)

_local = threading.local()  # mpmath keeps its precision in a context; each thread has one


class Inexact(Exception):
    """The value is no rational number, or not plainly one."""


def same_value(a: Node, b: Node) -> bool:
    """Whether two expressions are equal; false where one cannot be computed.

    Raises:
        Unreadable: one has parts that have no value, or that are too large.
    """
    if a == b:
        return True
    names = sorted(_names(a) | _names(b))
    agreed, below = 0, _has_abs(a) or _has_abs(b)  # positive numbers would not tell |x| from x
    for attempt in range(_TRIES if names else 1):
        point = {name: 1 + (_STEP * (7 * attempt + 3 * k + 1)) % 2 + Fraction(k, 97) for k, name in enumerate(names)}
        if below and attempt % 2:
            point = {name: -value for name, value in point.items()}
        try:
            equal = _agree(a, b, point)
        except ZeroDivisionError:
            continue
        if not equal:
            return False
        agreed += 1
        if agreed >= (_POINTS if names else 1):
            return True
    return False


def rational(node: Node) -> Fraction | None:
    """The value of an expression without variables, where it is a rational number plainly."""
    try:
        return _exact(node, {})
    except (Inexact, Unreadable, ZeroDivisionError, KeyError):
        return None


def proportional(a: Node, b: Node) -> bool:
    """Whether a and b, with variables, are multiples of each other by a number other than 0: the same equation."""
    names = sorted(_names(a) | _names(b))
    if not names or not _names(a) or not _names(b):
        return False
    ones: Mapping[str, Fraction] = {name: 1 + Fraction(k + 2, 7 * k + 11) for k, name in enumerate(names)}
    at_a, at_b = _fixed(a, ones), _fixed(b, ones)
    return not _vanishes(at_a) and not _vanishes(at_b) and same_value(("mul", (a, at_b)), ("mul", (b, at_a)))


def _vanishes(node: Node) -> bool:
    try:
        return same_value(node, ("num", Fraction(0)))
    except ZeroDivisionError:
        return True


def _fixed(node: Node, point: Mapping[str, Fraction]) -> Node:
    if node[0] == "var":
        return ("num", point[node[1]])
    return tuple(
        _fixed(part, point) if _is_node(part) else tuple(_fixed(p, point) for p in part) if _is_nodes(part) else part
        for part in node
    )


def _is_node(part: Any) -> bool:
    return isinstance(part, tuple) and bool(part) and isinstance(part[0], str)


def _is_nodes(part: Any) -> bool:
    return isinstance(part, tuple) and all(map(_is_node, part))


def parts(node: Node) -> Iterator[Node]:
    """The nodes right below a node."""
    for part in node[1:]:
        if _is_node(part):
            yield part
        elif isinstance(part, tuple):
            for inner in part:
                if _is_node(inner):
                    yield inner
                elif isinstance(inner, tuple):
                    yield from (p for p in inner if _is_node(p))


def _names(node: Node) -> set[str]:
    found = {node[1]} if node[0] == "var" else set()
    for part in parts(node):
        found |= _names(part)
    return found


def _has_abs(node: Node) -> bool:
    return node[:2] == ("call", "abs") or any(map(_has_abs, parts(node)))


def _agree(a: Node, b: Node, point: Mapping[str, Fraction]) -> bool:
    try:
        return _exact(a, point) == _exact(b, point)
    except Inexact:
        pass
    first = _Numeric(point, 40)
    first.pair(a, b)
    digits = _SPARE + first.digits
    if digits > _MOST_DIGITS:
        raise Unreadable("numbers too far apart")
    exact = _Numeric(point, digits + 15)
    x, y = exact.pair(a, b)
    context = exact.context
    if not (context.isfinite(x) and context.isfinite(y)):
        raise ZeroDivisionError
    return abs(x - y) <= exact.largest * context.mpf(10) ** -digits


# Exact values


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
        raise Unreadable("too large")
    return value


def _exact(node: Node, point: Mapping[str, Fraction]) -> Fraction:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "var":
        return point[node[1]]
    if kind == "add":
        total = Fraction(0)
        for part in node[1]:
            total = _bounded(total + _exact(part, point))
        return total
    if kind == "mul":
        product = Fraction(1)
        for part in node[1]:
            product = _bounded(product * _exact(part, point))
        return product
    if kind == "div":
        return _bounded(_exact(node[1], point) / _exact(node[2], point))
    if kind == "neg":
        return -_exact(node[1], point)
    if kind == "percent":
        return _exact(node[1], point) / 100
    if kind == "pow":
        return _exact_power(_exact(node[1], point), _exact(node[2], point))
    if kind == "binom":
        n, k = _exact(node[1], point), _exact(node[2], point)
        if not (_whole(n) and _whole(k)) or not 0 <= k <= n <= _LARGEST_FACTORIAL:
            raise Unreadable("a binomial")
        return Fraction(math.comb(int(n), int(k)))
    if kind == "call" and node[1] in ("factorial", "abs", "floor", "ceil"):
        return _exact_call(node[1], _exact(node[2], point))
    if kind == "root":
        return _exact_root(_exact(node[1], point), _exact(node[2], point))
    raise Inexact


def _whole(value: Fraction) -> bool:
    return value.denominator == 1


def _exact_call(name: str, value: Fraction) -> Fraction:
    if name == "factorial":
        if not (_whole(value) and 0 <= value <= _LARGEST_FACTORIAL):
            raise Unreadable("a factorial")
        return Fraction(math.factorial(int(value)))
    return abs(value) if name == "abs" else Fraction(math.floor(value) if name == "floor" else math.ceil(value))


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if not _whole(exponent):
        raise Inexact
    if abs(exponent) * max(1, base.numerator.bit_length() + base.denominator.bit_length() - 2) > _MOST_BITS:
        raise Unreadable("too large")
    if base in (0, 1, -1):
        if base == 0 and exponent < 0:
            raise ZeroDivisionError
        return Fraction(base ** int(abs(exponent) % 2 if base else bool(exponent)))
    return base ** int(exponent)


def _exact_root(value: Fraction, degree: Fraction) -> Fraction:
    """The square root of a square; others are computed to many digits."""
    if degree != 2 or value < 0:
        raise Inexact
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top * top != value.numerator or bottom * bottom != value.denominator:
        raise Inexact
    return Fraction(top, bottom)


# Values to many digits


class _Numeric:
    """Values as complex numbers to `digits` digits; it notes the largest and the smallest number on the way."""

    def __init__(self, point: Mapping[str, Fraction], digits: int):
        if not hasattr(_local, "context"):
            import mpmath

            _local.context = mpmath.MPContext()
        self.context = _local.context
        self.context.dps = digits
        self.point, self.largest, self.smallest = point, self.context.mpf(1), self.context.mpf(1)

    @property
    def digits(self) -> int:
        """How many digits lie between the largest and the smallest number."""
        return int(self.context.log10(self.largest) - self.context.log10(self.smallest)) + 1

    def pair(self, a: Node, b: Node) -> tuple[Any, Any]:
        try:
            return self.value(a), self.value(b)
        except (ValueError, OverflowError, TypeError, NotImplementedError, self.context.NoConvergence) as error:
            raise Unreadable(str(error)) from None

    def value(self, node: Node) -> Any:
        found = self._value(node)
        size = abs(found)
        if not self.context.isfinite(found):
            raise ZeroDivisionError
        if size:
            if abs(self.context.mag(size)) > 4 * _MOST_DIGITS:
                raise Unreadable("too large")
            self.largest = max(self.largest, size)
            if node[0] != "add":  # what a sum leaves may be nothing but noise
                self.smallest = min(self.smallest, size)
        return found

    def _number(self, value: Fraction) -> Any:
        return self.context.mpf(value.numerator) / value.denominator

    def _value(self, node: Node) -> Any:
        kind, context = node[0], self.context
        if kind == "num":
            return self._number(node[1])
        if kind == "var":
            return self._number(self.point[node[1]])
        if kind == "const":
            if node[1] == "inf":
                raise Unreadable("infinity")
            return {"pi": +context.pi, "e": +context.e, "i": context.mpc(0, 1)}[node[1]]
        if kind == "add":
            return context.fsum(self.value(part) for part in node[1])
        if kind == "mul":
            return context.fprod(self.value(part) for part in node[1])
        if kind == "div":
            return self.value(node[1]) / self.value(node[2])
        if kind == "neg":
            return -self.value(node[1])
        if kind == "percent":
            return self.value(node[1]) / 100
        if kind == "pow":
            return self._power(self.value(node[1]), self.value(node[2]))
        if kind == "root":
            return self._root(self.value(node[1]), self.value(node[2]))
        if kind == "log":
            base = self.value(node[2])
            return context.log(self.value(node[1])) / context.log(base)
        if kind == "call":
            return self._call(node[1], node[2])
        raise Unreadable(kind)

    def _power(self, base: Any, exponent: Any) -> Any:
        if abs(exponent) > 10 * _MOST_DIGITS:
            raise Unreadable("too large")
        if not base:
            if self.context.re(exponent) <= 0:
                raise ZeroDivisionError
            return base
        return base**exponent

    def _root(self, value: Any, degree: Any) -> Any:
        """The real root where there is one: an odd one of a negative number is negative."""
        if not degree:
            raise ZeroDivisionError
        if not self.context.im(value) and self.context.re(value) < 0 and self.context.isint(degree) and degree % 2:
            return -((-value) ** (1 / degree))
        return self._power(value, 1 / degree)

    def _call(self, name: str, argument: Node) -> Any:
        context = self.context
        if name == "det":
            raise Unreadable("a determinant")
        value = self.value(argument)
        if abs(value) > 10**6:  # functions of larger ones need digits in proportion
            raise Unreadable("too large")
        functions = {"arcsin": context.asin, "arccos": context.acos, "arctan": context.atan, "abs": abs}
        if name in functions:
            return functions[name](value)
        if name in ("floor", "ceil"):
            near = context.nint(context.re(value))
            if abs(near - value) < context.mpf(10) ** -_SPARE:
                raise Unreadable("a whole number but for its last digits")
        if name == "factorial" and (context.im(value) or not 0 <= context.re(value) <= _LARGEST_FACTORIAL):
            raise Unreadable("a factorial")
        return getattr(context, name)(value)
