"""Training on rollouts: the collector, advantages, the trainer."""
