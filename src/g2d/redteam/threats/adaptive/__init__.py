"""The attacker who owns the generator: averages over what it may draw, or finds what it drew."""
