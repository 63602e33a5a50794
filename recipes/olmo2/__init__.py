"""OLMo 2 (arXiv 2501.00656): pre-training in two stages, SFT, DPO and RLVR."""
