"""A rollout to many replicas, simulated."""
