"""Integrations: one thin file per framework or logger, imported only when used.

A metric sink is a function of a Snapshot: `Monitor(..., on_snapshot=sink)`.
"""
