"""Training: one train step, the loop, the train state, the optimiser; reinforcement learning in `rl/`."""
