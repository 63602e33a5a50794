"""Folders in the format of Hugging Face, in and out."""
