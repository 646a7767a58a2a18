"""One file for each cause; each file that defines `TRAININGS` is found by listing this folder."""
