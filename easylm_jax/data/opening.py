"""Opens caches: packed ones, and indexes of shards that are read in place."""

from __future__ import annotations

from pathlib import Path

from easylm_jax.data.cache import MEND, Cache, read_manifest
from easylm_jax.data.picture_store import PairPictureStore, PictureStore
from easylm_jax.data.shards import ShardCache
from models import reading
from models.errors import UserError


def open_cache(folder: str | Path) -> Cache:
    """Opens a cache folder, or the only cache inside a folder.

    Raises:
        UserError: there is no cache or several, files are missing or truncated, or the format is of another version.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        inside = sorted(path.parent for path in folder.glob("*/manifest.json") if not path.parent.name.startswith("."))
        if len(inside) > 1:
            names = ", ".join(path.name for path in inside)
            raise UserError(f"cache: {folder} holds several caches ({names}); give one of these folders")
        if not inside:
            raise UserError(f"cache: {folder} holds no manifest.json; build it with `easylm data build`")
        folder = inside[0]
    manifest = read_manifest(folder)
    for name, facts in manifest["files"].items():
        path = reading.inside(folder, name, folder / "manifest.json", mend=MEND)
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise UserError(f"cache {folder}: {name} is missing or truncated; delete the folder and rebuild")
    if "shards" in manifest:
        return ShardCache(folder, manifest)
    cache = Cache(folder, manifest)
    seeing = {"pictures": PictureStore, "preference": PairPictureStore}.get(manifest["spec"]["kind"])
    if seeing is None or manifest["spec"].get("vision") is None:
        return cache
    return cache.with_columns(seeing(folder, manifest))
