"""Reinforcement learning: collecting rollouts, computing advantages, updating the policy and the value model."""
