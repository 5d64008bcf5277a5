"""The attacker who knows that a basin is the secret: joint attacks basin by basin."""
