"""Reports of Effects, one file a format."""
