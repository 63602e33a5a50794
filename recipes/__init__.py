"""What to train: one folder for each paper, one short file for each run. `python -m recipes` lists them."""
