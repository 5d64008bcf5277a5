"""Trains checkpoints: the loop, the population, adopted models, and recipes."""
