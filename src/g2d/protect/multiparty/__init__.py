"""Inference by parties that each hold a share of weights, inputs and answers, and nobody the whole.

Two environments take part. The product's own, with torch, translates networks, shares weights and
asks: SPU is never imported there. The parties' (`party`, `.venv-smpc`) has SecretFlow SPU and jax,
and neither torch nor anything else of ours but what knows the standard library alone: `errors`,
`program`, `config`, `wire`.
"""
