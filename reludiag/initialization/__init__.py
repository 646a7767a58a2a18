"""Initialization: how the weights of a network began."""
