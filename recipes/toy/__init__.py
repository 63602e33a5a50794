"""Small recipes for one CPU that check training on real data (OLMo 2, arXiv 2501.00656)."""
