"""IF-RLVR (arXiv 2507.02833): instructions that a program verifies as a reward, IFBench and IFEval as the tests."""
