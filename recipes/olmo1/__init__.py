"""OLMo (arXiv 2402.00838): pre-training of the first 1B and 7B models."""
