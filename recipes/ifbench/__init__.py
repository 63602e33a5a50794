"""IF-RLVR (arXiv 2507.02833): RLVR with verifiable instructions, evaluated on IFBench and IFEval."""
