"""Tülu 3 (arXiv 2411.15124): supervised fine-tuning, preferences, verifiable rewards."""
