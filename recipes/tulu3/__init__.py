"""Tülu 3 (arXiv 2411.15124): SFT, DPO and RLVR."""
