"""Ahead-of-time plans: compiles a recipe's programs for a TPU pod, without a TPU, for peak memory and step time.

    recipe → shapes → lowered programs → TPU compiler → memory, cycles, collectives → table

Nothing is measured. Memory is what the compiler reports; times are projections (`estimate`).
"""
