"""Numbers as text, as tables and figures show them."""

from __future__ import annotations

from typing import Any

from easylm_jax.report.read import number

NONE = "–"


def decimal(value: Any, scale: float, digits: int, sign: bool = False) -> str:
    """`value` · `scale` with so many decimals; what is no finite number stays visible as such."""
    if isinstance(value, float) and number(value) is None:
        return str(value)
    if number(value) is None:
        return NONE
    return f"{value * scale:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def with_error(value: Any, error: Any, scale: float, digits: int, sign: bool = False) -> str:
    """A value ± its standard error."""
    if number(value) is None or number(error) is None:
        return decimal(value, scale, digits, sign)
    return f"{decimal(value, scale, digits, sign)} ± {decimal(error, scale, digits)}"


def count(value: Any) -> str:
    return decimal(value, 1, 0)


def scientific(value: Any) -> str:
    """Two digits; as a power of ten where it is small."""
    if number(value) is None or value == 0 or abs(value) >= 0.001:
        return decimal(value, 1, 4)
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds in the units that a person would use."""
    if seconds is None:
        return NONE
    if seconds < 300:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
