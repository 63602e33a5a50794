"""How models are trained: recipes, data, the training loop, checkpoints, monitoring and the command `easylm`."""
