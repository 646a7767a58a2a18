"""Initialization: how the weights of a network were initialized."""
