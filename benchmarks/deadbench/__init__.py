"""Trainings whose units die of a proved cause, and what reludiag says of them."""
