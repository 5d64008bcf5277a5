"""Weight autoencoder + latent diffusion, guidance and gates; `Generator` over them."""

from g2d.generator.gates import GateResult, Reference, run_gates, stale_asr
from g2d.generator.guidance import Exposure
from g2d.generator.model import FORMAT, Generator, hidden_units

__all__ = [
    "FORMAT",
    "Exposure",
    "GateResult",
    "Generator",
    "Reference",
    "hidden_units",
    "run_gates",
    "stale_asr",
]
