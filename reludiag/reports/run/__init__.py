"""Reports of a Diagnosis, one file per format."""
