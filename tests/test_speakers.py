"""A model that speaks: an answer depends on its conversation and number alone, whatever is reused or beside it."""

import pytest
import rl_kit

from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.synthesize.speakers import Ask, Manner, ModelSpeaker, answer_all

MANNER = Manner(6, 0.8, 0.95)


def speaker(slots, reuse):
    path = f"run:{rl_kit.made().out / 'rl' / 'sft'}"
    return ModelSpeaker(path, "sft", None, slots, 7, make_mesh("dp=-1"), reuse)


def talk(voice, slots, turns=2):
    """What is said in dialogues that grow turn by turn, by slot."""
    views = {slot: [{"role": "user", "content": "one two"[: 3 + slot]}] for slot in slots}
    said = []
    for turn in range(turns):
        answers = voice.answer({slot: Ask(view, 10 * slot + turn) for slot, view in views.items()}, MANNER)
        said.append({slot: answer.text for slot, answer in answers.items()})
        for slot, answer in answers.items():
            views[slot] = [*views[slot], {"role": "assistant", "content": answer.text},
                           {"role": "user", "content": f"{turn}"}]  # fmt: skip
    return said


@pytest.mark.slow  # trains what `rl_kit` trains
def test_answers_depend_neither_on_reuse_nor_on_the_company():
    with rl_kit.devices(1):
        reusing = speaker(2, reuse=True)
        together = talk(reusing, range(2))
        assert len({text for turn in together for text in turn.values()}) > 2
        fresh = speaker(1, reuse=False)
        assert talk(fresh, [0]) == [{0: turn[0]} for turn in together]
        computed = [voice.summary()["tokens_computed"] / voice.summary()["tokens_in"] for voice in (reusing, fresh)]
        assert computed[0] < 0.7 * computed[1]
        long = Ask([{"role": "user", "content": "one two three " * 40}], 0)
        answers = answer_all(fresh, [long, Ask([{"role": "user", "content": "one"}], 1)], MANNER)
        assert [one.failed for one in answers] == ["too long", None] and reusing.name == "sft"
