"""Training: the train step, the loop, the train state and the optimizer; reinforcement learning is in `rl/`."""
