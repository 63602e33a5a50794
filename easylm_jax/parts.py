"""What a stage has finished of its output so far, kept only as long as nothing that it was made from has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from easylm_jax import checkpoint_arrays, fields

if TYPE_CHECKING:
    from easylm_jax.config import Stage
    from easylm_jax.experiment import Experiment

NOTE = "made_from.txt"


def parts_folder(stage: Stage, experiment: Experiment, name: str) -> Path:
    """The folder for a stage's finished parts. Those made with other settings, or from a stage that was since run anew,
    are taken away."""
    folder = experiment.folder(stage.name) / name
    made = {need: experiment.done(experiment.recipe.stage(need)) for need in stage.needs}
    key = fields.digest({"settings": experiment.settings(stage), "made": made})
    if checkpoint_arrays.is_first_process():
        note = folder / NOTE
        if folder.exists() and not (note.is_file() and note.read_text() == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(key)
    checkpoint_arrays.barrier(f"{stage.name} parts")
    return folder
