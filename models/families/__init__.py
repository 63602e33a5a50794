"""One file a family: its presets, its tensor names in the format of Hugging Face, its configuration in and out."""
