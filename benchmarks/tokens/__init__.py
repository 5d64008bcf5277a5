"""A spam filter over token ids: messages of our own making, a small transformer, rotations."""
