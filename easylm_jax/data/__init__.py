"""Data: sources → chat template → tokens with loss weights → packed cache on disk → `batch_at(step)`.

A cache is built once from a `DataSpec`; training reads only the cache. See docs/data.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from easylm_jax.config.data import DataSpec, Source
    from easylm_jax.data.build import build_cache
    from easylm_jax.data.cache import Cache
    from easylm_jax.data.columns import ColumnStore, open_columns, write_columns
    from easylm_jax.data.loader import Loader
    from easylm_jax.data.opening import open_cache
    from easylm_jax.data.sentencepiece_model import train_sentencepiece
    from easylm_jax.data.tokenizer import Tokenizer, load_tokenizer

_LAZY = {
    "DataSpec": "config.data",
    "Source": "config.data",
    "build_cache": "data.build",
    "Cache": "data.cache",
    "ColumnStore": "data.columns",
    "open_columns": "data.columns",
    "write_columns": "data.columns",
    "open_cache": "data.opening",
    "Loader": "data.loader",
    "Tokenizer": "data.tokenizer",
    "load_tokenizer": "data.tokenizer",
    "train_sentencepiece": "data.sentencepiece_model",
}
__all__ = [
    "Cache",
    "ColumnStore",
    "DataSpec",
    "Loader",
    "Source",
    "Tokenizer",
    "build_cache",
    "load_tokenizer",
    "open_cache",
    "open_columns",
    "train_sentencepiece",
    "write_columns",
]


def __getattr__(name: str):
    """Imports a public name on first use, so that `easylm --help` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"easylm_jax.{_LAZY[name]}"), name)
