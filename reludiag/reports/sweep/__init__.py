"""Reports of Effects, one file per format."""
