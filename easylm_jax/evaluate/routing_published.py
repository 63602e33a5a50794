"""Counts of routing that others made, such as those that OLMoE published, through the functions of `routing`.

A folder has what OLMoE's script counts (allenai/OLMoE, scripts/run_routing_analysis.py) for the first, the middle and
the last layer, as JSON (`.json` or `.json.gz`), one file for each domain:

| file | content |
|---|---|
| `expert_counts/<domain>` | a list of layers, {expert: tokens that have it among their k} |
| `expert_counts_top1/<domain>` | the same of first choices; may be missing |
| `expert_counts_crosslayer_top1/<domain>` | a list of neighbours in it, {"i\\|j": tokens}; may be missing |

The layers' numbers are not in the files: a layer is called by its place in the list, from 1.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from easylm_jax.evaluate import routing
from models import reading
from models.errors import UserError

_COUNTS, _FIRST, _PAIRS = "expert_counts", "expert_counts_top1", "expert_counts_crosslayer_top1"
_MEND = "give a folder of counts as docs/routing.md describes it"


def has_counts(folder: Path) -> bool:
    """Whether a folder has counts of routing."""
    return (folder / _COUNTS).is_dir()


def analyse(folder: Path, active: int | None) -> dict[str, Any]:
    """Shares, loads and flows of every domain, for `routing_page`.

    Args:
        folder: see above.
        active: experts of a token; None where the first choices are there too, whose number is that of tokens.
    """
    counts = {name: _layers(path) for name, path in _files(folder / _COUNTS).items()}
    if not counts:
        raise UserError(f"{folder / _COUNTS} has no file; {_MEND}")
    first = {name: _layers(path) for name, path in _files(folder / _FIRST).items()}
    pairs = {name: _layers(path) for name, path in _files(folder / _PAIRS).items()}
    experts = 1 + max(int(expert) for layers in counts.values() for layer in layers for expert in layer)
    k = _active(folder, counts, first, active)
    domains = {}
    for name, layers in counts.items():
        shown = {k: _dense(layers, experts, folder / _COUNTS / name)}
        if name in first:
            shown[1] = _dense(first[name], experts, folder / _FIRST / name)
        flows = [_pair_matrix(pair, experts, folder / _PAIRS / name) for pair in pairs.get(name, [])]
        domains[name] = routing.domain(shown, {f"{i + 1}-{i + 2}": flow for i, flow in enumerate(flows)})
    depths = {len(layers) for layers in counts.values()}
    if len(depths) > 1:
        raise UserError(f"{folder / _COUNTS} has domains with different numbers of layers; {_MEND}")
    return {
        "run": str(folder), "experts": experts, "active": k, "layers": depths.pop(), "steps": [], "coactivation": [],
        "shown_layers": list(range(1, 1 + len(next(iter(counts.values()))))), "domains": domains,
    }  # fmt: skip


def _active(folder: Path, counts: dict[str, Any], first: dict[str, Any], active: int | None) -> int:
    """Experts of a token: the counts of all choices over those of the first ones."""
    found = {
        sum(counts[name][0].values()) / max(1, sum(layers[0].values()))
        for name, layers in first.items() if name in counts
    }  # fmt: skip
    if not found:
        if active is None:
            raise UserError(f"{folder} has no {_FIRST}, which would tell the active experts of a token; give --active")
        return active
    k = found.pop()
    if found or k != int(k) or active not in (None, k):
        raise UserError(f"{folder}: the counts are not those of {active or 'one number of'} active experts; {_MEND}")
    return int(k)


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder by domain; none when there is no folder."""
    found = sorted(path for path in folder.glob("*.json*") if path.name.endswith((".json", ".json.gz")))
    return {path.name.partition(".json")[0]: path for path in found}


def _layers(path: Path) -> list[dict[str, int]]:
    data = reading.read_bytes(path, mend=_MEND)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise reading.Damaged(path, f"no gzip: {error}", _MEND) from None
    layers = reading.parse_json(data, list[dict[str, int]], path, mend=_MEND)
    if not layers or not all(sum(layer.values()) > 0 for layer in layers):
        raise reading.Damaged(path, "it has a layer without tokens", _MEND)
    for layer in layers:
        for name, count in layer.items():
            if count < 0 or not all(part.isdecimal() and len(part) < 6 for part in name.split("|")):
                raise reading.Damaged(path, f"{name!r}: {count} is no count of an expert", _MEND)
    return layers


def _dense(layers: list[dict[str, int]], experts: int, where: Path) -> np.ndarray:
    """int64 [L, E]."""
    made = np.zeros((len(layers), experts), np.int64)
    for row, layer in zip(made, layers, strict=True):
        for expert, count in layer.items():
            row[_number(expert, experts, where)] = count
    return made


def _pair_matrix(pair: dict[str, int], experts: int, where: Path) -> np.ndarray:
    """int64 [E, E]: tokens by their experts in two layers."""
    made = np.zeros((experts, experts), np.int64)
    for names, count in pair.items():
        i, bar, j = names.partition("|")
        if not bar:
            raise reading.Damaged(where, f"{names!r} is no pair of experts", _MEND)
        made[_number(i, experts, where), _number(j, experts, where)] = count
    return made


def _number(expert: str, experts: int, where: Path) -> int:
    if not expert.isdecimal() or int(expert) >= experts:
        raise reading.Damaged(where, f"{expert!r} is none of {experts} experts", _MEND)
    return int(expert)
