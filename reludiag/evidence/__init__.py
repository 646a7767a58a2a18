"""Evidence: what is found out during a run about why units died."""
