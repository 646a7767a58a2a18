"""Analysis: what a table of trials says."""
