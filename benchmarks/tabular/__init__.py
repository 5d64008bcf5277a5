"""Benchmarks on tables: inputs that are no images, attacked within a budget for every feature."""
