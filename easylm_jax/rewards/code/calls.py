"""Tests in one process, the tested program in another: what the tests call is asked for over a channel.

The checker's process runs the test. Names that the program defines stand there for proxies: calling one sends the
arguments and brings the result, as plain data. So the program never sees what its results are compared with, has no
hand on the comparison, and cannot say that a test has passed. `serve` is the program's side, `check` the tests'.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from easylm_jax.rewards.code import plain, shadows

PROGRAM = "program"
_MOST = 16 << 20  # bytes of one message
_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "matmul",
             "and_", "or_", "xor")  # fmt: skip


class Closed(BaseException):
    """The other side is gone or says what nobody asked for: the test ends here, whatever it would catch."""


class Failed(Exception):
    """An exception of the program's own class, as its tests see it."""


class Channel:
    """Messages as lines of JSON. Each side may ask while it is being asked (a test may hand over a function)."""

    def __init__(self, file: int, answer: Callable[[list], Any]):
        self._file, self._answer, self._had = file, answer, bytearray()

    def say(self, kind: str, *what: Any) -> None:
        line = json.dumps([kind, *what]).encode() + b"\n"
        left = memoryview(line)
        while left:
            left = left[os.write(self._file, left) :]

    def hear(self) -> list:
        """The next message; what it asks for is not answered."""
        while (end := self._had.find(b"\n")) < 0:
            part = os.read(self._file, 1 << 16)
            if not part or len(self._had) > _MOST:
                raise Closed
            self._had += part
        line = bytes(self._had[:end])
        del self._had[: end + 1]
        message = json.loads(line)
        if type(message) is not list or not message:
            raise Closed
        return message

    def ask(self, *what: Any) -> list:
        """What the other side says to a question; its own questions in between are answered."""
        self.say("ask", *what)
        while True:
            message = self.hear()
            if message[0] != "ask":
                return message
            self._answer(message[1:])


# The program's side


class Program:
    """The tested program, loaded, answering its tests."""

    def __init__(self, file: int):
        self._objects: list[Any] = []
        self._channel = Channel(file, self._serve_one)

    def run(self, source: str) -> None:
        """Loads the program and answers until nobody asks any more."""
        module = types.ModuleType(PROGRAM)
        sys.modules[PROGRAM] = module
        try:
            exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
            names = [name for name in list(module.__dict__) if type(name) is str and not name.startswith("__")]
        except BaseException as error:  # SystemExit among them: a program that ends has not been tested
            self._channel.say("failed", *_described(error))
            return
        self._globals = module.__dict__
        self._channel.say("loaded", names)
        while True:
            message = self._channel.hear()
            self._serve_one(message[1:])

    def _serve_one(self, question: list) -> None:
        try:
            what, *rest = question
            value = getattr(self, f"_{what}")(*rest)
        except Closed:
            raise
        except BaseException as error:
            self._channel.say("raised", *_described(error))
        else:
            self._channel.say("value", *value)

    def _encode(self, value: Any) -> Any:
        return plain.encode(value, self._refer, PROGRAM)

    def _refer(self, value: Any) -> int:
        self._objects.append(value)
        return len(self._objects) - 1

    def _decode(self, data: Any) -> Any:
        return plain.decode(data, lambda number: self._objects[number] if number >= 0 else self._callback(~number))

    def _callback(self, number: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            kind, *what = self._channel.ask("callback", number, [self._encode(one) for one in arguments])
            if kind != "value":
                raise RuntimeError(*what[1:2])
            return self._decode(what[0])

        return call

    def _name(self, name: str) -> list:
        return [self._encode(self._globals[name])]

    def _call(self, target: Any, positional: list, named: dict) -> list:
        """The result, and what became of the lists, dicts and sets that were handed over."""
        arguments = [self._decode(one) for one in positional]
        words = {name: self._decode(one) for name, one in named.items()}
        result = self._decode(target)(*arguments, **words)
        changing = (list, dict, set, bytearray)
        return [self._encode(result), [self._encode(one) if type(one) in changing else None for one in arguments]]

    def _get(self, target: Any, name: str) -> list:
        return [self._encode(getattr(self._decode(target), name))]

    def _set(self, target: Any, name: str, value: Any) -> list:
        setattr(self._decode(target), name, self._decode(value))
        return [None]

    def _item(self, target: Any, key: Any) -> list:
        return [self._encode(self._decode(target)[self._decode(key)])]

    def _set_item(self, target: Any, key: Any, value: Any) -> list:
        self._decode(target)[self._decode(key)] = self._decode(value)
        return [None]

    def _said(self, how: str, target: Any) -> list:
        functions: dict[str, Callable[..., Any]] = {"str": str, "repr": repr, "len": len, "bool": bool, "iter": iter}
        made = functions[how](self._decode(target))
        return [["o", self._refer(made)] if how == "iter" else self._encode(made)]

    def _next(self, target: Any, count: int) -> list:
        """At most `count` more values, and whether there may be more."""
        values, iterator = [], self._decode(target)
        for _ in range(count):
            try:
                values.append(self._encode(next(iterator)))
            except StopIteration:
                return [["l", values], False]
        return [["l", values], True]

    def _both(self, how: str, left: Any, right: Any) -> list:
        return [self._encode(getattr(operator, how)(self._decode(left), self._decode(right)))]

    def _is_a(self, target: Any, kind: Any) -> list:
        return [isinstance(self._decode(target), self._decode(kind))]


def _described(error: BaseException) -> list:
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return [[kind.__name__ for kind in type(error).__mro__], text]


def serve(file: int, source: str) -> None:
    """The program's process."""
    Program(file).run(source)


# The tests' side


class Tests:
    """Runs one test against a program in another process."""

    def __init__(self, file: int):
        self._channel = Channel(file, self._answer)
        self._callbacks: list[Callable[..., Any]] = []

    def run(self, test: str, source: str) -> None:
        """Raises whatever the test raises; it has passed if it returns."""
        kind, *what = self._channel.hear()
        if kind != "loaded":
            raise Failed("the program failed")
        tree = ast.parse(test)
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names = read.intersection(name for name in what[0] if type(name) is str)
        defined = shadows.defined(source)
        tree = shadows.renamed(tree, names, defined)
        space: dict[str, Any] = {"__name__": "test"}
        for name in sorted(names):
            if name in sys.stdlib_module_names and name not in defined:
                space[name] = importlib.import_module(name)  # what the program imported, the test may use
            elif not hasattr(builtins, name):
                space[name] = self._value("name", name)
            elif name in defined:
                space[shadows.PREFIX + name] = self._value("name", name)
        exec(compile(ast.fix_missing_locations(tree), "<test>", "exec", dont_inherit=True), space)

    def _value(self, *question: Any) -> Any:
        return self._decode(self._ask(*question)[0])

    def _ask(self, *question: Any) -> list:
        kind, *what = self._channel.ask(*question)
        if kind == "value":
            return what
        if kind != "raised":
            raise Closed
        names, text = what
        kinds = (getattr(builtins, name, None) for name in names if type(name) is str)
        found = next((one for one in kinds if isinstance(one, type) and issubclass(one, Exception)), Failed)
        try:
            error = found(text)
        except TypeError:  # such as UnicodeDecodeError, which wants more
            error = Failed(text)
        raise error

    def _answer(self, question: list) -> None:
        what, number, arguments = question
        if what != "callback":
            raise Closed
        try:
            value = self._encode(self._callbacks[number](*(self._decode(one) for one in arguments)))
        except Exception as error:
            self._channel.say("raised", *_described(error))
        else:
            self._channel.say("value", value)

    def _encode(self, value: Any) -> Any:
        return plain.encode(value, self._refer)

    def _refer(self, value: Any) -> int:
        if type(value) is Proxy:
            return object.__getattribute__(value, "_number")
        if not callable(value):
            raise TypeError(f"a {type(value).__name__} cannot be handed to the program")
        self._callbacks.append(value)
        return ~(len(self._callbacks) - 1)

    def _decode(self, data: Any) -> Any:
        return plain.decode(data, lambda number: Proxy(self, number))

    def _call(self, target: Any, arguments: tuple, words: dict[str, Any]) -> Any:
        sent = [self._encode(one) for one in arguments]
        result, *changed = self._ask("call", target, sent, {name: self._encode(one) for name, one in words.items()})
        for ours, before, after in zip(arguments, sent, changed[0], strict=True):
            if after is not None and after != before:
                _become(ours, self._decode(after))
        return self._decode(result)


def _become(ours: Any, theirs: Any) -> None:
    """What the program did to a list, dict or set is done to the test's own, too."""
    if type(ours) is not type(theirs):
        raise Closed
    if isinstance(ours, (list, bytearray)):
        ours[:] = theirs
    elif isinstance(ours, (dict, set)):
        ours.clear()
        ours.update(theirs)


class Proxy:
    """An object of the program's. It equals nothing but what the program's own objects compare with; together with
    plain data it has no operators, so that no object can make a comparison with an expected value come out right."""

    __slots__ = ("_number", "_tests")

    def __init__(self, tests: Tests, number: int):
        object.__setattr__(self, "_tests", tests)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **words: Any) -> Any:
        return _tests(self)._call(_self(self), arguments, words)

    def __getattr__(self, name: str) -> Any:
        return _tests(self)._value("get", _self(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        _tests(self)._ask("set", _self(self), name, _tests(self)._encode(value))

    def __getitem__(self, key: Any) -> Any:
        return _tests(self)._value("item", _self(self), _tests(self)._encode(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        _tests(self)._ask("set_item", _self(self), _tests(self)._encode(key), _tests(self)._encode(value))

    def __iter__(self) -> Iterator[Any]:
        iterator = ["o", object.__getattribute__(_tests(self)._value("said", "iter", _self(self)), "_number")]
        count, more = 1, True
        while more:
            values, more = _tests(self)._ask("next", iterator, count)
            yield from _tests(self)._decode(values)
            count = min(2 * count, 1024)

    def __next__(self) -> Any:
        values, _ = _tests(self)._ask("next", _self(self), 1)
        for value in _tests(self)._decode(values):
            return value
        raise StopIteration

    def __contains__(self, value: Any) -> bool:
        return any(one == value for one in self)

    def __len__(self) -> int:
        return _tests(self)._value("said", "len", _self(self))

    def __bool__(self) -> bool:
        return _tests(self)._value("said", "bool", _self(self)) is True

    def __str__(self) -> str:
        return _tests(self)._value("said", "str", _self(self))

    def __repr__(self) -> str:
        return _tests(self)._value("said", "repr", _self(self))

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Proxy and _tests(self)._value("is_a", _self(value), _self(self)) is True

    def __hash__(self) -> int:
        return object.__getattribute__(self, "_number")


def _self(proxy: Proxy) -> list:
    return ["o", object.__getattribute__(proxy, "_number")]


def _tests(proxy: Proxy) -> Tests:
    return object.__getattribute__(proxy, "_tests")


def _operator(name: str) -> Callable[[Proxy, Any], Any]:
    def both(left: Proxy, right: Any) -> Any:
        if type(right) is not Proxy:
            return {"eq": False, "ne": True}.get(name, NotImplemented)
        return _tests(left)._value("both", name, _self(left), _self(right))

    return both


for _name in _COMPARED:
    setattr(Proxy, f"__{_name.strip('_')}__", _operator(_name))


def check(file: int, test: str, source: str) -> bool:
    """The checker's process: whether the test passes."""
    try:
        Tests(file).run(test, source)
    except BaseException:
        return False
    return True
