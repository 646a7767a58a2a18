"""Causes: what kills units, one file a kind of evidence; arrays and plain values, no tensors."""
