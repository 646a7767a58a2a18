"""Reports: the formats of each result; only `output` opens files."""
