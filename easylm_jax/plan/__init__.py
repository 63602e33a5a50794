"""Compiles a recipe's programs for a TPU pod ahead of time, with no TPU: does it fit, how fast should it be.

    recipe → shapes → programs, lowered → TPU compiler → memory, cycles, collectives → table

Nothing is measured here. Memory is the compiler's own verdict; times are projections (`estimate`).
"""
