"""OLMoE (arXiv 2409.02060): pre-training of a mixture of 64 experts."""
