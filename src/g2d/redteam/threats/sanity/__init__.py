"""Sanity of the attacks: the threat, and the checks by what they look for."""
