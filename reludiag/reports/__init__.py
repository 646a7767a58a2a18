"""Reports: each file makes one format of one result; `output` alone owns files."""
