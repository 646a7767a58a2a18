"""Capture: sees every rectifier call of a forward pass once."""
