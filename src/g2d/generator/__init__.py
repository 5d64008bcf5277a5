"""Latent space, drawing and guidance; `Generator` over them proposes parameters."""

from g2d.generator.exposure import Exposure
from g2d.generator.model import FORMAT, Generator, hidden_units

__all__ = ["FORMAT", "Exposure", "Generator", "hidden_units"]
