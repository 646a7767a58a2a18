"""Evidence: collected during a run to find out why units died."""
