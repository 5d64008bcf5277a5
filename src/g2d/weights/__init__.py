"""Parameters as vectors, checkpoints, symmetries."""
