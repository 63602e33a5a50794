"""Whether two answers are equal: compared as strings, then as trees whose parts are compared by value.

Order matters inside round and square brackets, but not in sets, unions and bare lists ("1, -2", "x = 1 or x = 2",
"1 ± √2"). Differences of notation are ignored: units and percent signs on one side, a leading "x =", unsimplified
fractions, inequalities instead of intervals.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from easylm_jax.rewards.maths.parse import Node, parse
from easylm_jax.rewards.maths.tidy import counted, numbers_joined, squeezed, tidy, without_unit
from easylm_jax.rewards.maths.tokens import LONGEST, Unreadable
from easylm_jax.rewards.maths.values import parts, proportional, rational, same_value

_MOST_ITEMS = 24
_CHOICE = re.compile(r"\(?([A-Z])[).:]?(?:\s.*)?", re.DOTALL)
_LONE_CHOICE = re.compile(r"\(?([A-Z])\)?\.?")
_PREFIX = re.compile(r"(?:the )?(?:final |correct )?(?:answer|choice|option)(?: is)?\s*[:=]?\s*", re.IGNORECASE)
WORDS = "words"  # the name of what is named in words: the area = 25
_INFINITY: Node = ("const", "inf")
_ZERO: Node = ("num", Fraction(0))
_LESS, _MORE = {"<", "<="}, {">", ">="}


@functools.lru_cache(maxsize=20_000)
def equal(candidate: str, gold: str) -> bool | None:
    """Whether the answers are equal; None if one of them cannot be parsed."""
    if len(candidate) > LONGEST or len(gold) > LONGEST:
        return candidate.strip() == gold.strip()
    ours, theirs = tidy(candidate), tidy(gold)
    if not ours or not theirs:
        return False
    if squeezed(ours) == squeezed(theirs) or _same_words(ours, theirs) or _same_choice(ours, theirs):
        return True
    (ours, unit), (theirs, other_unit) = without_unit(ours), without_unit(theirs)
    if unit and other_unit and unit != other_unit:
        return False
    ours, theirs = counted(ours), counted(theirs)
    if squeezed(ours) == squeezed(theirs):
        return True
    if re.fullmatch(r"[A-Za-z]{2,}", ours) and re.fullmatch(r"[A-Za-z]{2,}", theirs):
        return False  # a word is not a product of variables: "no" is not "on"
    unread = False
    for a, b in _readings(ours, theirs):
        try:
            if same(parse(a), parse(b)):
                return True
        except (Unreadable, RecursionError):
            unread = True
    return None if unread else False


def readable(text: str) -> bool:
    """Whether a whole text can be parsed as an answer and is not a sentence."""
    text = counted(without_unit(tidy(text))[0])
    try:
        parse(text)
    except (Unreadable, RecursionError):
        return False
    return re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", text)) is None


def _readings(a: str, b: str) -> list[tuple[str, str]]:
    """The possible readings of both sides: "1,000" is a number, or the list of 1 and 0."""
    return list(dict.fromkeys([(numbers_joined(a), numbers_joined(b)), (a, b)]))


def _same_words(a: str, b: str) -> bool:
    """Whether two words are equal, case-insensitively; symbols are case-sensitive (X is not x)."""
    words = re.sub(r"[^a-z]", "", re.sub(r"\\[A-Za-z]+", "", a).lower())
    if len(words) < 2 or re.search(r"[\d\\^_=]", a):
        return False
    left, right = (re.sub(r"[\s\"'`*]+", "", _PREFIX.sub("", text, count=1)).lower() for text in (a, b))
    return left == right


def _same_choice(candidate: str, gold: str) -> bool:
    """Whether the same multiple-choice letter is given, with or without brackets and the text of the choice."""
    right = _LONE_CHOICE.fullmatch(gold)
    given = _CHOICE.fullmatch(_PREFIX.sub("", candidate, count=1).strip("* "))
    if right is None or given is None:
        return False
    marked = re.match(r"\(?[A-Z][).:]", candidate) is not None
    return right[1] == given[1] and (marked or _LONE_CHOICE.fullmatch(given[0]) is not None)


# Trees


def same(a: Node, b: Node) -> bool:
    """Whether two trees are equal answers.

    Raises:
        Unreadable: a part has no value.
    """
    if a == b:
        return True
    if a[0] == "rel" or b[0] == "rel":
        return _same_relation(a, b)
    items_a, items_b = _collection(a), _collection(b)
    if items_a is not None or items_b is not None:
        return items_a is not None and items_b is not None and _matched(items_a, items_b)
    if a[0] == "union" or b[0] == "union":
        return a[0] == b[0] and _matched(a[1], b[1])
    if a[0] == "bracket" or b[0] == "bracket":
        return a[0] == b[0] and a[1:3] == b[1:3] and _in_order(a[3], b[3])
    if a[0] == "matrix" or b[0] == "matrix":
        return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(_in_order, a[1], b[1]))
    return _same_scalar(a, b)


def _in_order(a: Sequence[Node], b: Sequence[Node]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def _matched(a: Sequence[Node], b: Sequence[Node]) -> bool:
    """Whether two collections have the same members, in any order."""
    if len(a) != len(b) or len(a) > _MOST_ITEMS:
        return False
    left = list(b)
    for item in a:
        for place, other in enumerate(left):
            if same(item, other):
                del left[place]
                break
        else:
            return False
    return True


def _collection(node: Node) -> tuple[Node, ...] | None:
    """The members of a set, of a list without brackets, or of an expression with ±; None for everything else."""
    if node[0] in ("list", "set"):
        return tuple(member for item in node[1] for member in _both_signs(item))
    spread = _both_signs(node)
    return spread if len(spread) > 1 else None


def _both_signs(node: Node) -> tuple[Node, ...]:
    """An expression with ± as two, one for each sign."""
    if not _has_signs(node) or node[0] in ("list", "set", "bracket", "union", "matrix"):
        return (node,)
    return _signed(node, 1), _signed(node, -1)


def _has_signs(node: Node) -> bool:
    return node[0] == "pm" or any(map(_has_signs, parts(node)))


def _signed(node: Node, sign: int) -> Node:
    if node[0] == "pm":
        inner = _signed(node[2], sign)
        return inner if node[1] == sign else ("neg", inner)
    return _rebuilt(node, lambda part: _signed(part, sign))


def _rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    def changed(part: object) -> object:
        if isinstance(part, tuple) and part and isinstance(part[0], str) and not isinstance(part, Fraction):
            return change(part) if part[0] not in ("=", "<", ">", "<=", ">=", "!=", "in", "~", "==") else part
        return tuple(map(changed, part)) if isinstance(part, tuple) else part

    return (node[0], *map(changed, node[1:]))


def _same_relation(a: Node, b: Node) -> bool:
    first, second = _stated(a), _stated(b)
    if a[0] == b[0] == "rel":
        if first and second and first[0] and second[0] and same(first[1], second[1]):
            return first[0] == second[0] or WORDS in (first[0], second[0])
        if len(a[2]) == len(b[2]) == 1 and a[2] == b[2] == ("=",):
            return _same_equation(a, b)
        return a[2] == b[2] and _in_order(a[1], b[1])
    if a[0] == "rel":
        if first is None or (not first[0] and first[1] == _ZERO):  # x² − 4 = 0 says nothing of 0
            return False
        return same(first[1], b)
    return second is not None and bool(second[0] or b[2] != ("=",)) and same(a, second[1])


def _same_equation(a: Node, b: Node) -> bool:
    (left, right), (other_left, other_right) = a[1], b[1]
    return proportional(("add", (left, ("neg", right))), ("add", (other_left, ("neg", other_right))))


def _stated(node: Node) -> tuple[str, Node] | None:
    """(name, value) of a relation: x = 5, f(x) = 2x, x in [0, 1], 0 < x ≤ 1. The name is "" if the left side is not a
    single name, as in 2 + 3 = 5. None for relations that give no value."""
    if node[0] != "rel":
        return "", node
    nodes, operators = node[1], node[2]
    name = _name(nodes[0])
    if set(operators) == {"="}:
        if not name and len(nodes) == 2 and _name(nodes[1]) and nodes[0][0] != "var":
            return _name(nodes[1]), nodes[0]
        return name, nodes[-1]
    if operators == ("in",):
        return name, nodes[1]
    if operators == ("~",):
        return name, nodes[1] if name else nodes[0]
    interval = _interval(nodes, operators)
    return interval


def _name(node: Node) -> str:
    """The name on the left of an equals sign: x, f(x), (x, y), or words; "" for anything else."""
    if node[0] == "var":
        return str(node[1])
    if node[0] == "mul" and len(node[1]) == 2 and all(part[0] == "var" for part in node[1]):
        return f"{node[1][0][1]}({node[1][1][1]})"
    if node[0] == "bracket" and all(part[0] == "var" for part in node[3]):
        return f"({','.join(part[1] for part in node[3])})"
    return WORDS if node[0] == "word" or (node[0] == "mul" and node[1][-1][0] == "word") else ""


def _interval(nodes: Sequence[Node], operators: Sequence[str]) -> tuple[str, Node] | None:
    """An inequality about one name as an interval: −2 ≤ x < 7 as [−2, 7)."""
    if set(operators) <= _MORE:
        nodes = nodes[::-1]
        operators = [operator.replace(">", "<") for operator in operators][::-1]
    elif not set(operators) <= _LESS:
        return None
    if len(nodes) == 3 and (name := _name(nodes[1])):
        low, high, opening, closing = nodes[0], nodes[2], operators[0], operators[1]
    elif len(nodes) == 2 and (name := _name(nodes[0])):
        low, high, opening, closing = ("neg", _INFINITY), nodes[1], "<", operators[0]
    elif len(nodes) == 2 and (name := _name(nodes[1])):
        low, high, opening, closing = nodes[0], _INFINITY, operators[0], "<"
    else:
        return None
    return name, ("bracket", "(" if opening == "<" else "[", ")" if closing == "<" else "]", (low, high))


def _same_scalar(a: Node, b: Node) -> bool:
    """Whether two values are equal. A percent sign on one side may be a factor or a unit: 50 % equals 1/2 and 50."""
    if _INFINITY in (a, b, *a[1:], *b[1:]):
        return a == b
    percent, other = a[0] == "percent", b[0] == "percent"
    if percent and other:
        return same_value(a[1], b[1])
    if percent != other:
        with_sign, plain = (a, b) if percent else (b, a)
        return same_value(with_sign[1], plain) or same_value(with_sign, plain)
    first, second = rational(a), rational(b)
    if first is not None and second is not None:
        return first == second
    return same_value(a, b)
