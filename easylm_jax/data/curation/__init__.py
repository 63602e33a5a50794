"""Curation of training rows: decontamination, deduplication, filters, mixing, statistics (spec tulu3 §7, §2.6).

rows of files → blocks → one decision per row (worker processes) → kept rows, in order and otherwise unchanged
"""
