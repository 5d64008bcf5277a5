"""Differential privacy: what is spent, and what an audit can show of it."""
