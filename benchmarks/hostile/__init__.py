"""Requests, files and signals that mean harm: fuzzing, tampering, kills."""
