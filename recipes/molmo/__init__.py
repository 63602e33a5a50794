"""Molmo and PixMo (arXiv 2409.17146): captions, fine-tuning on a mixture, and the same at a size for one CPU."""
