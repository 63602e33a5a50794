"""Tülu 2.5 (arXiv 2406.09279): ablations of preference data, algorithm, reward model and policy prompts."""
