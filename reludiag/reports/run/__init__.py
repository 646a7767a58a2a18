"""Reports of a Diagnosis, one file a format."""
