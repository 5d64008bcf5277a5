"""What monitors of a live service see, how soon, and what they take for an attack that is none."""
