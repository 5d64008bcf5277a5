"""Robust members: recipes, and rotation over a robust population, on MNIST."""
