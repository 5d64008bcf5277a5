"""Answers without seeing: ciphertexts in, ciphertexts out, by the generation that is live.

What is computed on ciphertexts is in `protect.homomorphic`. Here is where it runs (`evaluators`, in
processes of their own: TenSEAL holds Python's lock), whose keys are known (`keyring`), and how it
is asked (`calls`).
"""
