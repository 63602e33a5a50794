"""OLMo 2 (arXiv 2501.00656): base models in two stages, fine-tuning, preferences, verifiable rewards."""
