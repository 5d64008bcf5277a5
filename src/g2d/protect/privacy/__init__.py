"""Differential privacy of what a vault releases: what is spent, what it costs, what it covers."""
