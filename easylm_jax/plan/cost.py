"""What a pod costs, from one dated file of prices that a user can replace; and its names at Google Cloud.

    python -m easylm_jax.plan.cost price v5p-128 --hours 24
    python -m easylm_jax.plan.cost describe v5p-128          accelerator type, software version, chips

Prices are in `prices.json` beside this file, or in the file that `--prices` or `EASYLM_PRICES` names. Only what that
file holds is counted; a price that it does not know is asked for and not guessed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from easylm_jax.plan import topology
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.chips import CLOUD_NAMES
from models.errors import UserError

DEFAULT = Path(__file__).with_name("prices.json")
VARIABLE = "EASYLM_PRICES"
ON_DEMAND, SPOT = KINDS = ("on_demand", "spot")


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices of one chip for one hour, by chip and kind (`KINDS`); None where the file leaves one open."""

    file: Path
    date: str
    currency: str
    chips: Mapping[str, Mapping[str, float | None]]

    def hourly(self, pod: Topology, kind: str = "on_demand") -> float:
        """The price of all chips of a pod for an hour.

        Raises:
            UserError: the file does not hold this price.
        """
        price = self.chips.get(pod.chip.name, {}).get(kind)
        if price is None:
            raise UserError(
                f"{self.file} has no {kind.replace('_', '-')} price for {pod.chip.name}: look it up and write it in a "
                f"copy of that file, which --prices or {VARIABLE} names"
            )
        return price * pod.chips

    def span(
        self, pod: Topology, hours: tuple[float, float], kind: str = ON_DEMAND
    ) -> tuple[float, float] | None:  # fmt: skip
        """What a pod costs for the lowest and the highest number of hours; None where the file has no price."""
        if self.chips.get(pod.chip.name, {}).get(kind) is None:
            return None
        hourly = self.hourly(pod, kind)
        return hourly * hours[0], hourly * hours[1]

    def described(self, pod: Topology, kind: str = ON_DEMAND) -> str:
        """A sentence about the prices of a pod."""
        price, name = self.chips.get(pod.chip.name, {}).get(kind), kind.replace("_", "-")
        if price is None:
            return f"{self.file} has no {name} price for {pod.chip.name}; give a file that has with --prices."
        return (
            f"Prices are of {self.date} ({self.file}): {self.currency} {price:g} per chip and hour {name}, "
            f"{self.currency} {self.hourly(pod, kind):,.2f} for the pod; another file with --prices."
        )


def read_prices(path: str | None = None) -> Prices:
    """The prices of a file; by default that of `EASYLM_PRICES`, else the project's own.

    Raises:
        UserError: it cannot be read, or has another form.
    """
    file = Path(path or os.environ.get(VARIABLE) or DEFAULT)
    try:
        value = json.loads(file.read_text())
        prices = Prices(file, str(value["date"]), str(value["currency"]), value["chips"])
        for name, chip in prices.chips.items():
            for kind, price in chip.items():
                if kind not in KINDS or not (price is None or (isinstance(price, int | float) and price >= 0)):
                    raise UserError(f"{file}: {name}.{kind} is {price!r}; give a price of at least 0, or null")
    except OSError as error:
        raise UserError(f"cannot read the prices of {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} has not the form of {DEFAULT} ({type(error).__name__}: {error})") from error
    return prices


def cloud_names(pod: Topology) -> tuple[str, str]:
    """The pod's accelerator type in Google's Cloud TPU API, such as `v5litepod-16`, and its software version.

    Raises:
        UserError: that API has no such type.
    """
    chip = pod.chip
    if chip.name not in CLOUD_NAMES:
        raise UserError(
            f"{pod.name}: Google's Cloud TPU API has no {chip.name}; docs/launching.md says what a run needs on GKE"
        )
    if pod.slices > 1:
        raise UserError(f"{pod.name}: the scripts create pods of one slice; leave out *{pod.slices}")
    name, software = CLOUD_NAMES[chip.name]
    usual = {math.prod(shape): shape for shape in topology.sizes(chip)}.get(pod.chips)
    if pod.shape != usual and pod.chips > 1:
        raise UserError(
            f"{pod.name}: only the usual shape of a size can be created"
            + (f", here {chip.name}:{'x'.join(map(str, usual))}" if usual else "")
        )
    return f"{name}-{pod.chips * chip.cores}", software


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 2: an unknown type, or a price that is not in the file."""
    parser = argparse.ArgumentParser(prog="python -m easylm_jax.plan.cost", description="What a pod costs.")
    parser.add_argument("action", choices=("price", "describe"))
    parser.add_argument("type", help="such as v5p-128 or v5e:16x16")
    parser.add_argument("--spot", action="store_true")
    parser.add_argument("--hours", type=float)
    parser.add_argument("--created", help="when it was created, in RFC 3339; prints what it has cost since")
    parser.add_argument("--prices", metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        pod = topology.parse(given.type)
        if given.action == "describe":
            print(*cloud_names(pod), pod.chips)
            return 0
        print(_priced(pod, read_prices(given.prices), "spot" if given.spot else "on_demand", given))
        return 0
    except UserError as error:
        print(f"easylm: error: {error}", file=sys.stderr)
        return 2


def _priced(pod: Topology, prices: Prices, kind: str, given: argparse.Namespace) -> str:
    hourly = prices.hourly(pod, kind)
    hours = given.hours
    if given.created:
        try:
            created = datetime.datetime.fromisoformat(given.created)
        except ValueError:
            raise UserError(f"{given.created!r} is no time in RFC 3339") from None
        hours = (datetime.datetime.now(datetime.UTC) - created).total_seconds() / 3600
    line = (
        f"{pod.name}: {pod.chips} chips, {prices.currency} {hourly:,.2f} an hour {kind.replace('_', '-')}"
        f" (prices of {prices.date}, {prices.file})"
    )
    if hours is not None:
        since = "since it was created" if given.created else "in"
        line += f"\n{since} {hours:,.1f} hours: {prices.currency} {hourly * hours:,.2f}"
    return line


if __name__ == "__main__":
    sys.exit(main())
