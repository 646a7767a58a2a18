"""Benchmarks: each file is a program that says its method and prints a table."""
