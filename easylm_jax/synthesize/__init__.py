"""Models write data for later stages: best-of-N, majority votes."""
