"""Integrations: one thin file a framework or logger, each imported only when it is used.

A metric sink is whatever takes a Snapshot: `Monitor(..., on_snapshot=sink)`.
"""
