"""Differential privacy of what a vault releases: what was spent, and what that proves."""
