"""Answers as trees: a reader of the LaTeX and plain text in which final answers are written.

text → tokens → node

A node is a tuple whose first element says what it is:

    ("num", Fraction)  ("var", name)  ("const", "pi" | "e" | "i" | "inf")  ("word", text)  ("based", digits, base)
    ("add", nodes)  ("mul", nodes)  ("div", a, b)  ("pow", a, b)  ("neg", a)  ("pm", sign, a)  ("percent", a)
    ("call", function, argument)  ("log", argument, base)  ("root", argument, degree)  ("binom", n, k)
    ("list", nodes)  ("set", nodes)  ("bracket", open, close, nodes)  ("union", nodes)  ("matrix", rows)
    ("rel", nodes, operators)

Length, number of tokens, depth and digits are bounded before anything is computed, and nothing is computed here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from easylm_jax.rewards.maths.tokens import FUNCTIONS, LONGEST, Unreadable, tokens_of
from easylm_jax.rewards.maths.words import GREEK

Node = tuple[Any, ...]

_DEEPEST = 40
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "<=": "<=", ">=": ">=", "\\ne": "!=", "!=": "!=",
    "\\in": "in", "\\approx": "~", "\\sim": "~", "\\equiv": "==",
}  # fmt: skip
_TIMES = {"*", "\\cdot", "\\times", "\\ast"}
_OVER = {"/", "\\div"}
_OPENING = {"(": ")", "[": "]", "\\langle": "\\rangle"}
_WRAPPERS = {"\\vec", "\\hat", "\\bar", "\\overline", "\\underline", "\\overrightarrow", "\\mathbb", "\\mathcal"}
_MATRICES = {"pmatrix", "bmatrix", "vmatrix", "matrix", "array", "smallmatrix", "Bmatrix"}


def parse(text: str) -> Node:
    """The tree of an answer.

    Raises:
        Unreadable: it has no meaning here, or is too long, too deep or has too many digits.
    """
    if len(text) > LONGEST:
        raise Unreadable("too long")
    reader = _Reader(tokens_of(text))
    node = reader.listing(None)
    if reader.peek() is not None:
        raise Unreadable(f"{reader.peek()!r} is left")
    return node


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth, self.bars = tokens, 0, 0, 0

    def peek(self, ahead: int = 0) -> str | None:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise Unreadable("it ends too early")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise Unreadable(f"{token!r} is missing")

    def listing(self, close: str | None) -> Node:
        """Relations between commas, to the end or to a closing bracket, which is left."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unreadable("too deep")
        items = [self.relation()]
        while (token := self.peek()) in (",", ";", "\\or", "\\and"):
            self.take()
            if token in (",", ";") and self.peek() in ("\\or", "\\and"):
                self.take()
            if self.peek() == close:
                break
            items.append(self.relation())
        self.depth -= 1
        return items[0] if len(items) == 1 else ("list", tuple(items))

    def relation(self) -> Node:
        nodes, operators = [self.union()], []
        while (operator := _RELATIONS.get(self.peek() or "")) is not None:
            self.take()
            operators.append(operator)
            nodes.append(self.union())
        return ("rel", tuple(nodes), tuple(operators)) if operators else nodes[0]

    def union(self) -> Node:
        nodes = [self.sum()]
        while self.peek() == "\\cup":
            self.take()
            nodes.append(self.sum())
        return ("union", tuple(nodes)) if len(nodes) > 1 else nodes[0]

    def sum(self) -> Node:
        terms = []
        while True:
            sign = self.take() if self.peek() in ("+", "-", "\\pm", "\\mp") else "+"
            term = self.product()
            terms.append(
                term if sign == "+" else ("neg", term) if sign == "-" else ("pm", 1 if sign == "\\pm" else -1, term)
            )
            if self.peek() not in ("+", "-", "\\pm", "\\mp"):
                return terms[0] if len(terms) == 1 else ("add", tuple(terms))

    def product(self) -> Node:
        node = self.signed()
        while True:
            token = self.peek()
            if token in _TIMES:
                self.take()
                node = ("mul", (node, self.signed()))
            elif token in _OVER:
                self.take()
                node = ("div", node, self.signed())
            elif self.begins_factor():
                node = ("mul", (node, self.power()))
            else:
                return node

    def signed(self) -> Node:
        """A factor; after a sign of multiplication or division it may have a sign of its own."""
        negative = False
        while self.peek() in ("-", "+"):
            negative ^= self.take() == "-"
        node = self.power()
        return ("neg", node) if negative else node

    def begins_factor(self) -> bool:
        token = self.peek()
        if token is None or token in ("|", "\\|", "\\lvert"):
            return token == "\\lvert" or (token is not None and self.bars == 0)
        return token[0].isalnum() or token[0] == "." or token in ("(", "[", "{", "\\{") or token[0] == "'" or (
            token in _ATOMS or token[1:] in FUNCTIONS or token[1:] in GREEK or token in _WRAPPERS
        )  # fmt: skip

    def power(self) -> Node:
        node = self.atom()
        while True:
            token = self.peek()
            if token in ("^", "**"):
                self.take()
                node = ("pow", node, self.argument())
            elif token == "!":
                self.take()
                node = ("call", "factorial", node)
            elif token in ("%", "\\%"):
                self.take()
                node = ("percent", node)
            elif token == "'":
                self.take()
                if node[0] != "var":
                    raise Unreadable("a prime")
                node = ("var", f"{node[1]}'")
            else:
                return node

    def argument(self) -> Node:
        """What follows ^ or \\frac: a group, or else one digit, letter or command (a signed number after ^)."""
        token = self.peek()
        if token == "{":
            return self.group("{", "}")
        if token in ("-", "+"):
            self.take()
            node = self.argument()
            return ("neg", node) if token == "-" else node
        return self.atom()

    def digit(self) -> Node:
        """An argument of \\frac or \\sqrt: of an unbraced number only the first digit belongs to it."""
        token = self.peek()
        if token is not None and token.isdecimal() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.argument()

    def group(self, opening: str, closing: str) -> Node:
        self.expect(opening)
        bars, self.bars = self.bars, 0
        node = self.listing(closing)
        self.bars = bars
        self.expect(closing)
        return node

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unreadable("too deep")
        token = self.take()
        if token[0].isdecimal() or (token[0] == "." and len(token) > 1):
            node = self.number(token)
        elif token[0] == "'" and len(token) > 1:
            node = ("word", token[1:].lower())
        elif token.isalpha():
            node = self.letter(token)
        elif token in ("(", "[", "\\langle", "\\{", "|", "\\|", "\\lvert", "{"):
            self.at -= 1
            node = self.bracketed(token)
        elif token.startswith("\\"):
            node = self.command(token)
        else:
            raise Unreadable(f"{token!r}")
        self.depth -= 1
        return node

    def number(self, token: str) -> Node:
        node: Node = ("num", Fraction(token))
        if self.peek() == "_":
            self.take()
            base = self.argument()
            if not token.isdecimal() or base[0] != "num":
                raise Unreadable("a base")
            return ("based", token.lstrip("0"), base[1])
        if token.isdecimal():
            node = self.mixed(node)
        return node

    def mixed(self, whole: Node) -> Node:
        """A whole number with a fraction of whole numbers right behind it is their sum."""
        here = self.at
        part: Node | None = None
        if self.peek() == "\\frac":
            self.take()
            part = ("div", self.digit(), self.digit())
        elif (self.peek() or "").isdecimal() and self.peek(1) == "/" and (self.peek(2) or "").isdecimal():
            part = ("div", ("num", Fraction(self.take())), (self.take(), ("num", Fraction(self.take())))[1])
        if part is None or part[1][0] != "num" or part[2][0] != "num" or part[1][1] >= part[2][1]:
            self.at = here
            return whole
        return ("add", (whole, part))

    def letter(self, token: str) -> Node:
        name = token
        if self.peek() == "_":
            self.take()
            name += f"_{_name_of(self.argument())}"
        elif token in ("e", "i"):
            return ("const", token)
        return ("var", name)

    def bracketed(self, token: str) -> Node:
        if token in ("|", "\\|", "\\lvert"):
            closing = {"|": "|", "\\|": "\\|", "\\lvert": "\\rvert"}[token]
            self.take()
            self.bars += 1
            inner = self.sum()
            self.bars -= 1
            self.expect(closing)
            return ("call", "abs", inner)
        if token == "{":
            return self.group("{", "}")
        if token == "\\{":
            self.take()
            items = () if self.peek() == "\\}" else _items(self.listing("\\}"))
            self.expect("\\}")
            return ("set", items)
        self.take()
        bars, self.bars = self.bars, 0
        inner = self.listing(None)
        self.bars = bars
        closing = self.take()
        if closing not in (")", "]", "\\rangle") or (token == "\\langle") != (closing == "\\rangle"):
            raise Unreadable("brackets that do not match")
        if inner[0] != "list":
            if _OPENING[token] != closing or token == "\\langle":
                raise Unreadable("an interval of one")
            return inner
        return ("bracket", token, closing, inner[1])

    def command(self, token: str) -> Node:
        name = token[1:]
        if token == "\\frac":
            top = self.digit()
            return ("div", top, self.digit())
        if token == "\\sqrt":
            return self.root()
        if token == "\\binom":
            top = self.digit()
            return ("binom", top, self.digit())
        if token in ("\\pi", "\\infty"):
            return ("const", "pi" if token == "\\pi" else "inf")
        if token in ("\\emptyset", "\\varnothing"):
            return ("set", ())
        if token in ("\\lfloor", "\\lceil"):
            inner = self.sum()
            self.expect(f"\\r{name[1:]}")
            return ("call", name[1:], inner)
        if token in ("\\log", "\\lg", "\\abs") or name in FUNCTIONS:
            return self.function(FUNCTIONS.get(name, name))
        if token in _WRAPPERS:
            return ("var", f"{name}:{_name_of(self.argument())}")
        if name in GREEK:
            return self.letter(token)
        if token == "\\begin":
            return self.matrix()
        raise Unreadable(token)

    def root(self) -> Node:
        degree: Node = ("num", Fraction(2))
        if self.peek() == "[":
            degree = self.group("[", "]")
        return ("root", self.digit(), degree)

    def function(self, name: str) -> Node:
        base: Node | None = None
        power: Node | None = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.digit()
        if self.peek() in ("^", "**"):
            self.take()
            power = self.argument()
        if self.peek() in ("(", "{", "|", "[", "\\lvert"):
            inner = self.bracketed(self.peek() or "")
        else:
            inner = self.power()
            while self.begins_factor() and (self.peek() or "")[1:] not in (*FUNCTIONS, "log", "lg"):
                inner = ("mul", (inner, self.power()))
        if name in ("log", "lg"):
            node: Node = ("log", inner, ("num", Fraction(10)) if name == "lg" else base or ("const", "e"))
        else:
            node = ("call", name, inner)
        if power == ("neg", ("num", Fraction(1))):
            if name not in ("sin", "cos", "tan"):
                raise Unreadable("an inverse")
            return ("call", f"arc{name}", inner)
        return ("pow", node, power) if power is not None else node

    def matrix(self) -> Node:
        kind = self.environment()
        if kind not in _MATRICES:
            raise Unreadable(f"\\begin{{{kind}}}")
        if kind == "array":
            while self.take() != "}":  # the columns' alignment
                pass
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while True:
            if self.peek() not in ("\\\\", "\\end"):
                row.append(self.sum())
            token = self.take()
            if token == "&":
                continue
            if token not in ("\\\\", "\\end"):
                raise Unreadable("a matrix")
            if row:
                rows.append(tuple(row))
            row = []
            if token == "\\end":
                break
        if self.environment() != kind or len({len(r) for r in rows}) != 1:
            raise Unreadable("a matrix")
        return ("call", "det", ("matrix", tuple(rows))) if kind == "vmatrix" else ("matrix", tuple(rows))

    def environment(self) -> str:
        self.expect("{")
        name = ""
        while (token := self.take()) != "}":
            name += token.strip("'")
        return name


_ATOMS = {
    "\\frac", "\\sqrt", "\\binom", "\\pi", "\\infty", "\\lfloor", "\\lceil", "\\log", "\\lg", "\\abs", "\\begin",
    "\\emptyset", "\\langle",
}  # fmt: skip


def _items(node: Node) -> tuple[Node, ...]:
    return node[1] if node[0] == "list" else (node,)


def _name_of(node: Node) -> str:
    """A subscript as part of a name."""
    if node[0] in ("num", "var", "word", "const"):
        return str(node[1])
    if node[0] == "mul":
        return "".join(map(_name_of, node[1]))
    raise Unreadable("a subscript")
