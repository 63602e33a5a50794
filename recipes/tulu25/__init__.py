"""Tülu 2.5 (arXiv 2406.09279): preference data, algorithm, reward model and prompts, each varied by itself."""
