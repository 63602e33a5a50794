"""One file for each model family: released sizes, tensor names of Hugging Face, and conversion of `config.json`."""
