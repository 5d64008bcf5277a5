"""Serving policies: the threat, searches under every policy, and attacks on a vote."""
