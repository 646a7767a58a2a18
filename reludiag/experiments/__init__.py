"""Experiments: many runs of one training, and their comparison."""
