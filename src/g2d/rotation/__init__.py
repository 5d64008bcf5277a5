"""Snapshots and when they are swapped; knows neither HTTP nor torch."""
