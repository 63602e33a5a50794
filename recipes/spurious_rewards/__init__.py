"""Spurious Rewards (arXiv 2506.10947): RLVR with rewards that have little or no relation to correctness."""
