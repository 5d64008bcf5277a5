"""Whose weights these are, where they leaked, and whether they were changed: what can be proven."""
