"""Dotted names of the leaves of parameter trees, and selecting parts of trees by name.

The name of a leaf is its keys joined by dots: `layers.attn.q.kernel`. Trees may hold arrays or shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax

from models.errors import UserError

Tree = Any


def leaf_names(tree: Tree) -> list[str]:
    """Dotted names of all leaves, in the order of `jax.tree.leaves`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def named_map(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """`jax.tree.map` of `function(dotted name, leaf)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="."), leaf), tree
    )


def matches(pattern: str, name: str) -> bool:
    """Whether the dotted `pattern` matches consecutive whole components of `name`; `*` and `?` match within one.

    `attn.q` and `layers.*.q` match `layers.attn.q.kernel`; `att` does not.
    """
    wanted, parts = pattern.split("."), name.split(".")
    return any(
        all(fnmatchcase(part, want) for part, want in zip(parts[start:], wanted, strict=False))
        for start in range(len(parts) - len(wanted) + 1)
    )


def match(patterns: Sequence[str], names: Sequence[str], what: str) -> set[str]:
    """The names that match any of `patterns`. Raises `UserError`, starting with `what`, for a pattern without match."""
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if matches(pattern, name)}
        if not hits:
            raise UserError(f"{what}: {pattern!r} matches no parameter; there are {', '.join(sorted(names))}")
        found |= hits
    return found


def prune(tree: Tree, keep: Collection[str]) -> Tree:
    """A nested dictionary with only the leaves whose dotted names are in `keep`; empty branches are removed.

    Any other container is returned whole when every leaf is kept; otherwise `TypeError` is raised.
    """
    if set(leaf_names(tree)) <= set(keep):
        return tree

    def walk(branch: Mapping, prefix: str) -> dict:
        result = {}
        for key, value in branch.items():
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                inner = walk(value, f"{name}.")
                if inner:
                    result[key] = inner
            elif not jax.tree_util.all_leaves([value]):
                raise TypeError(f"cannot keep a part of {name}: it is a {type(value).__name__}, not a dictionary")
            elif name in keep:
                result[key] = value
        return result

    if not isinstance(tree, Mapping):
        raise TypeError(f"cannot keep a part of a {type(tree).__name__}; parameters are nested dictionaries")
    return walk(tree, "")


def merge_trees(base: Tree, part: Tree) -> Tree:
    """A copy of `base` with its leaves replaced by those of `part`: the inverse of `prune`."""
    if not isinstance(part, Mapping):
        return part
    return {key: merge_trees(value, part[key]) if key in part else value for key, value in base.items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as a flat one keyed by dotted paths."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
