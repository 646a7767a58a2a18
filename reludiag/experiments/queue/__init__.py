"""Queue: who runs which trial."""
