"""Privacy: the threat, membership and inversion."""
