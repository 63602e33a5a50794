"""Recipes: one folder for each paper, one short file for each table or figure. `python -m recipes` lists them."""
