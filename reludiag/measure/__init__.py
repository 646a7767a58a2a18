"""Measure: from a tensor to counts, and from counts to a verdict."""
