"""Stages that generate training data with a model: best-of-N and majority votes."""
