"""Built-in names that a program defines anew, such as `sum`: whose they are in its tests.

The program's, where a test is about them; the built-in ones around the program's own results, which would otherwise be
judged by the program itself.
"""

from __future__ import annotations

import ast
import builtins

PREFIX = "_program_"  # of the program's version, where a test means that


def renamed(tree: ast.Module, names: set[str], defined: set[str]) -> ast.Module:
    """A test in which calls of built-in names mean the program's versions where they may.

    Args:
        names: what the test reads of the program.
        defined: functions and classes that the program defines.
    """
    shadowed = {name for name in defined if hasattr(builtins, name)}
    return _Shadowed(shadowed, _touched(tree, names - shadowed)).visit(tree)


def defined(source: str) -> set[str]:
    """Functions and classes that the program's text defines at its top."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(source).body if isinstance(node, kinds)}


def _touched(tree: ast.AST, names: set[str]) -> set[str]:
    """The program's names, and those that share a statement with one that is touched: what they stand for may come
    from the program."""
    units = []
    for statement in ast.walk(tree):
        if isinstance(statement, ast.stmt):
            words = (
                getattr(node, "id", getattr(node, "arg", getattr(node, "name", None))) for node in ast.walk(statement)
            )
            units.append({word for word in words if isinstance(word, str) and not hasattr(builtins, word)})
    found = set(names)
    while more := set().union(*(unit for unit in units if unit & found)) - found:
        found |= more
    return found


class _Shadowed(ast.NodeTransformer):
    """Calls of a built-in name that the program defines anew (`sum`) become calls of the program's, but not around its
    own results: `abs(f(2) - 3)` is not the program's to decide."""

    def __init__(self, shadowed: set[str], touched: set[str]):
        self._shadowed, self._touched = shadowed, touched

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in self._shadowed:
            inner = [one for part in (*node.args, *node.keywords) for one in ast.walk(part)]
            if not any(isinstance(one, ast.Name) and one.id in self._touched for one in inner):
                node.func = ast.copy_location(ast.Name(PREFIX + node.func.id, ast.Load()), node.func)
        self.generic_visit(node)
        return node
