"""What encryption at rest promises, and what it costs."""
