"""Analysis of a table of trials."""
