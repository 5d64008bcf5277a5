"""The HTTP service: Open Inference Protocol v2, health, metrics, limits, admin, live events.

`assembly` puts the parts together, `http.server` runs them; `http.app` answers, `http.batcher`
infers, `loader` reads generations and alone needs torch, `worker` makes the next one. When to
rotate is decided in `g2d.rotation.scheduler`.
"""
