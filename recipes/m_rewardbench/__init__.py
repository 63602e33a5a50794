"""M-RewardBench (arXiv 2410.15522): reward models, DPO pairs and judges in 23 languages, beside published numbers."""
