"""TPM 2.0: its encodings, policies and wrapping without one, and this machine's own. No torch."""
