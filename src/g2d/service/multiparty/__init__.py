"""A vault's generations for parties that compute on shares: verified as if served, then shared."""
