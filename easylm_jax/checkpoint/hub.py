"""Finds folders of models and tokenizers: a local path, or a repository on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
TORCH_FILES = ("pytorch_model*.bin",)  # for repositories without safetensors, such as allenai/tulu-2-13b
MODEL_FILES = ("*.json", "*.safetensors", "tokenizer*", "merges.txt", "chat_template*")


def is_name(text: str) -> bool:
    """Whether `text` has the form of a repository on the Hub: "owner/name", optionally with "@revision"."""
    return _NAME.fullmatch(text) is not None


def resolve(name: str | os.PathLike, allow: Sequence[str] = MODEL_FILES) -> Path:
    """The folder for `name`: an existing local folder, otherwise a repository downloaded from the Hub.

    The prefix "hf:" is optional; with it, local folders are not considered. Raises `UserError` if there is neither.
    """
    text = os.fspath(name)
    if not text.startswith("hf:") and Path(text).expanduser().is_dir():
        return Path(text).expanduser()
    hub_name = text.removeprefix("hf:")
    if not is_name(hub_name):
        raise UserError(f"{text!r} is neither a folder nor a hub name like hf:allenai/OLMo-2-0425-1B")
    folder = fetch(hub_name, allow)
    if allow is MODEL_FILES and (folder / "config.json").is_file() and not list(folder.glob("*.safetensors")):
        fetch(hub_name, TORCH_FILES)
    return folder


def fetch(name: str, allow: Sequence[str] = MODEL_FILES) -> Path:
    """Downloads the files of `name` that match `allow` into the Hub's cache and returns their folder.

    `name` is "owner/model" or "owner/model@revision" (a branch, tag or commit; OLMo publishes training steps that way).
    Files in the cache are not downloaded again, and are used if there is no network.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(f"downloading {name} needs huggingface_hub: pip install huggingface_hub") from None
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(allow)))
    except Exception as error:  # various exceptions of huggingface_hub and of its network library
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise UserError(
            f"cannot download {name} from the hub ({type(error).__name__}: {reason}); "
            "download it elsewhere and give the folder instead, or set HF_TOKEN if it is gated"
        ) from error
