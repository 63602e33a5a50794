"""Import from and export to model folders in the format of Hugging Face."""
