"""Serving policies under attack: a service for many attackers side by side, and their searches."""
