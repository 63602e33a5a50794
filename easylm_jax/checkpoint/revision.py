"""Names of checkpoints as OLMo's repositories have them: `stage1-step928646-tokens3896B` (spec olmo §15).

The number of tokens in a released name is rounded down in some and up in others, so a name that is read is kept as it
is and never computed again.
"""

from __future__ import annotations

import dataclasses
import re

_NAME = re.compile(r"(?:(stage\d+)-)?(?:ingredient(\d+)-)?step(\d+)-tokens(\d+)B")


@dataclasses.dataclass(frozen=True)
class Revision:
    """A checkpoint of a published run: `stage` such as "stage1" (None where a run has one), `ingredient` of a soup,
    `step`, and `tokens` in billions as the name has them."""

    step: int
    tokens: int
    stage: str | None = None
    ingredient: int | None = None

    def __str__(self) -> str:
        stage = "" if self.stage is None else f"{self.stage}-"
        ingredient = "" if self.ingredient is None else f"ingredient{self.ingredient}-"
        return f"{stage}{ingredient}step{self.step}-tokens{self.tokens}B"


def parse(name: str) -> Revision | None:
    """The revision that a name says, of a model (`hf:owner/model@revision`) or alone; None for other names."""
    found = _NAME.fullmatch(name.rpartition("@")[2])
    if found is None:
        return None
    stage, ingredient, step, tokens = found.groups()
    return Revision(int(step), int(tokens), stage, None if ingredient is None else int(ingredient))


def of_stage(name: str, step: int, tokens_per_step: int) -> Revision:
    """The revision of a step of one's own run, with tokens rounded to the nearest billion. The stage of the name is the
    word "stage" with its number, where the stage's name begins with it ("stage2-50b-seed42")."""
    stage = re.match(r"stage\d+(?![a-zA-Z0-9])", name)
    return Revision(step, round(step * tokens_per_step / 1e9), stage[0] if stage else None)
