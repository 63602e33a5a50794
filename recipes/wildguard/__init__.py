"""WildGuard (arXiv 2406.18495): a moderator's mixture, training, ablations and tables."""
