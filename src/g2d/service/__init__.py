"""The HTTP service: Open Inference Protocol v2, health, metrics, limits, admin, live events.

`server.serve` runs it, `app` answers, `batcher` infers, `shelf` reads generations and is the one
room of torch here. When to rotate is decided in `g2d.rotation.scheduler`.
"""
