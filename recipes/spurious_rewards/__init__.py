"""Spurious Rewards (arXiv 2506.10947): reinforcement learning from rewards that say little or nothing of the answer."""
