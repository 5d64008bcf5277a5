"""What is watched while a service answers, and what its serving policies are worth."""
