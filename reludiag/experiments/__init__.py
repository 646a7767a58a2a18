"""Experiments: many runs of one training, and what they say together."""
