"""Model extraction: the threat, copies that start from random weights, and from exposed ones."""
