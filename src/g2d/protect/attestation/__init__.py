"""Attested release: a host's TPM proves its state, and a key is wrapped for that host alone.

The verifying side needs no TPM, `cryptography` alone; the host's side is in `host`. Knows no torch.
"""
