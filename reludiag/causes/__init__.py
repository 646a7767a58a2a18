"""Causes: what kills units, one file a kind of cause; arrays and plain values, no tensors."""
