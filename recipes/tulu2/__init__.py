"""Tülu 2 (arXiv 2311.10702): supervised fine-tuning of Llama 2; the initial models of Tülu 2.5 (arXiv 2406.09279)."""
