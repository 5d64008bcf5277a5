"""Who may ask, and how much: identities, roles, quotas. `gate` puts the parts together.

Nothing here answers a request or knows a model; what is refused is a `RequestError`.
"""
