"""Self-directed synthetic dialogues and revisions (SDSD, arXiv 2407.18421; no code of the paper is public)."""
