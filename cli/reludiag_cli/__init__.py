"""The command line of reludiag: one file a command, no logic of its own."""
