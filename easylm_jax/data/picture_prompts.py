"""How Molmo is asked about a picture: style tags, length hints, and ways to ask for captions, points and counts.

Spec molmo §10. The ways to ask are our own; there are as many as in the released code, whose words they do not repeat.
"""

from __future__ import annotations

import itertools
import random

CAPTIONS = (
    "Describe this picture.", "Describe the picture in detail.", "What does this picture show?",
    "Write a detailed description of the picture.", "Tell me all about this picture.",
    "Explain what can be seen here.", "Give a thorough caption for this picture.", "What is in this picture?",
    "Please describe what you see.", "Describe the scene.", "Write a long caption.",
    "Describe everything in this picture.", "Could you describe the picture for me?",
    "I cannot see the picture; describe it to me.", "Give me a full account of this picture.",
    "What is going on in this picture?", "List and describe what the picture holds.", "Put the picture into words.",
    "Describe the picture as precisely as you can.", "Write a paragraph about this picture.",
    "Caption this picture in detail.", "Summarise all that is visible.", "Talk me through this picture.",
)  # fmt: skip
_POINT_VERBS = ("Point to", "Point at", "Mark", "Locate", "Find", "Show me", "Indicate", "Pinpoint")
_POINT_THINGS = ("{label}", "each {label}", "all {label}", "every {label}", "any {label} in the picture")
POINTS = (*itertools.starmap("{} {}".format, itertools.product(_POINT_VERBS, _POINT_THINGS)),
          "Where is {label}?", "Where are the {label}?", "{label}, please: where in the picture?")  # fmt: skip
_COUNT_STARTS = (
    "How many {label}", "Count the {label}", "What is the number of {label}", "Tell me how many {label}",
    "Say how many {label}", "Give the number of {label}", "Find out how many {label}", "Work out how many {label}",
)  # fmt: skip
_COUNT_ENDS = (
    "", " in the picture", " there are", " are here", " you see", " are shown", " can be seen",
)  # fmt: skip
COUNTS = (
    "How many {label} are there?",
    *itertools.starmap("{}{}".format, itertools.product(_COUNT_STARTS, _COUNT_ENDS)),
)

# Styles whose questions are natural language; the tag stands before them only now and then.
DEMO = ("long_caption", "user_qa", "pointing", "point_count")
_ASKED = {"long_caption": CAPTIONS, "pointing": POINTS, "point_count": COUNTS}
TAG_RATE = 0.1  # of demo styles
HINT_RATE, HINT_NOISE, HINT_UNIT = 0.9, 25.0, 15


def hinted(style: str, response: str, rng: random.Random) -> str:
    """The prompt of stage 1: "style n:" with the length in units of 15 characters and noise; 10 % have no length."""
    if rng.random() >= HINT_RATE:
        return f"{style} :"
    return f"{style} {max(0, (len(response) + int(rng.gauss(0, HINT_NOISE))) // HINT_UNIT)}:"


def asked(style: str, question: str | None, label: str, rng: random.Random | None) -> str:
    """The question of an annotation of stage 2, its style tag in front where it is shown.

    Args:
        style: the tag; any other than `DEMO` is always shown.
        question: None for one of the ways to ask of the style.
        label: what is asked for, in lower case.
        rng: draws the way to ask and whether a demo style's tag is shown; None for the first way without a tag.
    """
    if question is None:
        ways = _ASKED.get(style, ("{label}",))
        question = (ways[0] if rng is None else rng.choice(ways)).format(label=label)
    shown = style not in DEMO if rng is None else style not in DEMO or rng.random() < TAG_RATE
    return f"{style}: {question}" if shown and style else question
