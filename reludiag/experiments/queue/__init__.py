"""Queue: decides which process runs which trial."""
