"""Published F1 of moderators in percent, which reports print beside ours (spec wildguard §6).

They were read off tables of a third party that cites WildGuard (GuardReasoner, arXiv 2501.18492), except the refusal
row, which is from memory of arXiv 2406.18495, Table 2. Two versions of the paper's headline claims exist.
"""

from __future__ import annotations

from easylm_jax.config import Published

_SOURCE = "arXiv 2501.18492, from arXiv 2406.18495"
PROMPTS = ("toxic_chat", "harmbench_prompts", "openai_moderation", "aegis", "simple_safety_tests", "wildguard_test")
RESPONSES = ("harmbench_responses", "safe_rlhf", "beaver_tails", "xstest_response_harm", "wildguard_test")
_PROMPT_ROWS = {
    "Llama Guard 7B": (61.6, 67.2, 75.8, 74.1, 93.0, 56.0),
    "Llama Guard 2 8B": (47.1, 94.0, 76.1, 71.8, 95.8, 70.9),
    "Llama Guard 3 8B": (53.1, 98.9, 79.7, 71.4, 99.5, 76.2),
    "Aegis-D 7B": (70.0, 77.7, 67.5, 84.8, 100.0, 78.5),
    "OpenAI Moderation API": (25.4, 9.6, 79.0, 31.9, 63.0, 12.1),
    "WildGuard 7B": (70.8, 98.9, 72.1, 89.4, 99.5, 88.9),
}
_RESPONSE_ROWS = {
    "Llama Guard 7B": (52.0, 48.4, 67.1, 82.0, 50.5),
    "Llama Guard 2 8B": (77.8, 51.6, 71.8, 90.8, 66.5),
    "Llama Guard 3 8B": (85.1, 44.4, 67.8, 87.7, 70.8),
    "Aegis-D 7B": (62.2, 59.3, 74.7, 52.8, 49.1),
    "MD-Judge 7B": (81.6, 64.7, 86.7, 90.4, 76.8),
    "BeaverDam 7B": (58.4, 72.1, 89.9, 83.6, 63.4),
    "HarmBench-Llama 13B": (84.3, 60.0, 77.1, 64.5, 45.7),
    "HarmBench-Mistral 7B": (87.0, 52.4, 75.2, 72.0, 60.1),
    "OpenAI Moderation API": (20.6, 10.1, 15.7, 46.6, 16.9),
    "WildGuard 7B": (86.3, 64.2, 84.4, 94.7, 75.4),
}


def rows() -> tuple[Published, ...]:
    """All of them, by the columns of `ModerationTable`."""
    found = []
    for table, sets, field in (
        (_PROMPT_ROWS, PROMPTS, "prompt_harmfulness"), (_RESPONSE_ROWS, RESPONSES, "response_harmfulness"),
    ):  # fmt: skip
        for method, values in table.items():
            found += [Published(method, f"{name} {field}", value / 100, _SOURCE)
                      for name, value in zip(sets, values, strict=True)]  # fmt: skip
    found.append(
        Published("WildGuard 7B", "xstest_response_refusal response_refusal", 0.928, "arXiv 2406.18495, Table 2")
    )
    found.append(Published("WildGuard 7B", "wildguard_test response_refusal", 0.886, _SOURCE))
    return tuple(found)
