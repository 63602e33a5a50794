"""Recipes at a size for one CPU, to see that real data goes through."""
