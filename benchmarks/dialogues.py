"""Dialogues per second with and without reusing the computation of earlier turns.

    python benchmarks/dialogues.py
    python benchmarks/dialogues.py --size tiny --turns 2 --repeats 1

A side of a dialogue sees a system text and a conversation that grows by a message and a reply with every turn. The
model replies to all dialogues at once (`decode.session`). Without reuse the keys and values are dropped before each
turn, so that the whole prompt is computed again, as `Dialogues(..., reuse=False)` does. Both write the same replies,
which is checked; they alternate, and medians are compared. Weights are random, and replies have a fixed length. The
last line of standard output is JSON: `ours` with reuse, `peer` without.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from common import SIZES, BenchmarkError, json_line, machine, run_main

SEED = 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="example: python benchmarks/dialogues.py --size tiny --repeats 1"
    )
    parser.add_argument("--size", choices=SIZES, default="5m", help="shape of the model (5m)")
    parser.add_argument("--dialogues", type=int, default=8, help="dialogues in flight (8)")
    parser.add_argument("--turns", type=int, default=6, help="replies in each (6)")
    parser.add_argument("--system", type=int, default=300, help="tokens of the system text, which has the plan (300)")
    parser.add_argument("--message", type=int, default=48, help="tokens of a message of the other side (48)")
    parser.add_argument("--reply", type=int, default=48, help="new tokens of a reply (48)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (5)")
    options = parser.parse_args()
    if min(options.dialogues, options.turns, options.system, options.message, options.reply, options.repeats) < 1:
        parser.error("all numbers must be at least 1")
    return options


class Dialogues:
    """Dialogues of fixed lengths over one session."""

    def __init__(self, options: argparse.Namespace):
        import jax

        import models
        from easylm_jax.decode import Engine
        from easylm_jax.decode.session import Session
        from models.config import DecoderConfig

        longest = options.system + options.turns * (options.message + options.reply)
        config = DecoderConfig("olmo2", **SIZES[options.size], context=longest, qk_norm=True)
        model = models.build(config)
        self.options, self.vocab = options, config.vocab
        self.session = Session(
            Engine(model, slots=options.dialogues), model.init(jax.random.key(SEED)), options.dialogues
        )

    def hold(self, reuse: bool) -> tuple[float, list[list[list[int]]]]:
        """Holds all dialogues; returns the seconds and the replies of each turn."""
        rng = np.random.default_rng(SEED)

        def message(length: int) -> list[int]:
            return rng.integers(1, self.vocab, length).tolist()

        slots = range(self.options.dialogues)
        views = {slot: message(self.options.system) for slot in slots}
        replies = []
        self.session.reset()
        began = time.perf_counter()
        for turn in range(self.options.turns):
            for slot in slots:
                views[slot] += message(self.options.message)
            if not reuse:
                self.session.reset()
            said = self.session.generate(
                views, numbers={slot: slot * 100 + turn for slot in slots}, max_new_tokens=self.options.reply,
                temperature=0.8, top_p=0.95, seed=SEED,
            )  # fmt: skip
            for slot in slots:
                views[slot] += said[slot].tokens
            replies.append([said[slot].tokens for slot in slots])
        return time.perf_counter() - began, replies


def main() -> None:
    options = arguments()
    dialogues = Dialogues(options)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    computed: dict[bool, int] = {}
    replies: dict[bool, Any] = {}
    for reuse in (True, False):  # compiles
        before = dialogues.session.computed
        replies[reuse] = dialogues.hold(reuse)[1]
        computed[reuse] = dialogues.session.computed - before
    same = float(np.mean([a == b for one, two in zip(*replies.values(), strict=True)
                          for a, b in zip(one, two, strict=True)]))  # fmt: skip
    if same < 0.9:  # an equal draw apart by rounding may choose another token
        raise BenchmarkError(f"only {same:.0%} of the replies are the same with and without reuse")
    for _ in range(options.repeats):
        for reuse in (True, False):
            seconds[reuse].append(dialogues.hold(reuse)[0])
    rate = {reuse: options.dialogues / statistics.median(values) for reuse, values in seconds.items()}
    for reuse, what in ((True, "with reuse"), (False, "without")):
        print(f"{what}: {rate[reuse]:.2f} dialogues/s of {options.turns} turns, "
              f"{computed[reuse] / options.dialogues:,.0f} prompt tokens computed for each")  # fmt: skip
    print(f"ratio {rate[True] / rate[False]:.2f}; {same:.0%} of the replies are the same")
    config = {**machine(), **vars(options), "seconds_with": seconds[True], "seconds_without": seconds[False],
              "computed_with": computed[True], "computed_without": computed[False], "same_replies": same}  # fmt: skip
    print(json_line(rate[True], rate[False], "dialogues/s", None, config))


if __name__ == "__main__":
    run_main(main)
