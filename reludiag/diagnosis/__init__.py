"""Diagnosis: the tables that every report is made from."""
