"""Monitoring: watches a training run and records it."""
