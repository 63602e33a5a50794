"""OLMo 3 (arXiv 2512.13961): pre-training and mid-training of the 7B base model."""
