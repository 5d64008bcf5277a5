"""The weight autoencoder: between parameter vectors V in R^P and standardised latents Z in R^d.

    Z = f_enc(V + xi_V, sigma),   V' = f_dec(Z + xi_Z, rho),   xi ~ N(0, .)
    loss = (1/K) sum ||v_k - v'_k||^2  +  behaviour * KL(p(v_k) || p(v'_k))         (docs/method.md)

Its outer layers are linear: the span of the K members holds all that a population says, and an
orthonormal basis of it costs K^2 P once. So the squared error in R^P is computed exactly in the
K - 1 coordinates, and 10^7 parameters fit in the memory of the members. The inner residual networks
are trained in those coordinates; what they decode stays in the affine hull of the members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from g2d.errors import PopulationError
from g2d.generator.out_of_core import combined, gram_of, is_large


@dataclass(frozen=True)
class Span:
    """An affine frame of the population: `v = mean + (c * spread) @ basis`.

    `basis` has shape (r, P) and orthonormal rows; coordinates `c` (r,) are standardised, so that
    members of one basin have unit variance along directions that basins vary in, and basins have
    unit variance along the rest. `basins` gives each basin's mean, shape (B, r), in coordinates.
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, members: Tensor, basins: Sequence[int]) -> Span:
        """Build the frame of K members, shape (K, P); `basins[k]` is member k's basin.

        Raises:
            PopulationError: fewer than two members, or all of them equal.
        """
        if len(members) < 2:
            raise PopulationError(
                f"a population of {len(members)} has no directions; make at least two members"
            )
        if is_large(members):  # coordinates without a basis: gram has all that they are made of
            mean, gram = gram_of(members)
            exact = _directions(gram)
            rotation, spread = _whiten(gram @ exact.T, torch.as_tensor(basins))
            basis = combined((rotation @ exact).to(members.dtype), members, mean)
            return cls(mean, basis, spread.to(members.dtype))
        mean = members.mean(0)
        centred = members - mean
        basis = _directions((centred @ centred.T).double()).to(members.dtype) @ centred
        coordinates = centred @ basis.T
        rotation, spread = _whiten(coordinates.double(), torch.as_tensor(basins))
        return cls(mean, rotation.to(members.dtype) @ basis, spread.to(members.dtype))

    def project(self, v: Tensor) -> Tensor:
        """Standardised coordinates (…, r) of vectors (…, P)."""
        if v.dim() == 2 and len(v) > 1 and is_large(v):
            return torch.cat([self.project(row) for row in v.split(1)])
        moves = (v.to(self.mean.device) - self.mean) @ self.basis.T
        return moves.to(self.spread.device) / self.spread

    def lift(self, c: Tensor) -> Tensor:
        """Vectors (…, P), on the frame's device, of standardised coordinates (…, r)."""
        return self.mean + (c * self.spread).to(self.mean.device) @ self.basis

    def placed(self, device: str) -> Span:
        """The frame with all that has the size of R^P on a device; coordinates stay on the CPU."""
        return Span(self.mean.to(device), self.basis.to(device), self.spread)


def _directions(gram: Tensor) -> Tensor:
    """Weights (r, K), float64, of members whose sums are orthonormal, the widest first.

    Raises:
        PopulationError: all members are equal.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values.max() * 1e-7
    if not bool(kept.any()) or float(values.max()) <= 0:
        raise PopulationError("all members are equal: there is nothing to generate from")
    return (vectors[:, kept] / values[kept].sqrt()).flip(1).T


def _whiten(c: Tensor, basins: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate coordinates (K, r) to within-basin axes first, between-basin axes after; and scale.

    Returns an orthogonal rotation (r, r) and the standard deviation along each new axis.
    """
    within = torch.cat([c[basins == b] - c[basins == b].mean(0) for b in basins.unique()])
    values, vectors = torch.linalg.eigh(within.T @ within)
    order = values.argsort(descending=True)
    values, vectors = values[order].clamp_min(0), vectors[:, order]
    freedom = max(1, len(c) - len(basins.unique()))
    varies = values > values.max().clamp_min(1e-30) * 1e-6
    rotated = c @ vectors
    between = rotated.std(0).clamp_min(1e-12)
    return vectors.T, torch.where(varies, (values / freedom).sqrt(), between)


class Residual(nn.Module):
    """x + MLP(x), the identity at first: training departs from the linear map only if it pays."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, size))
        nn.init.zeros_(self.inner[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.inner[2].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, size) to (…, size)."""
        return x + self.inner(x)


class WeightAutoencoder(nn.Module):
    """f_enc and f_dec around the population's span.

    Args:
        span: the frame, in R^P.
        latent: d, at most r; 0 means r.
        width: hidden width of the residual networks.
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor
    shift: Tensor
    scale: Tensor
    centres: Tensor
    between: Tensor

    def __init__(self, span: Span, latent: int, width: int, basins: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", span.mean)
        self.register_buffer("basis", span.basis)
        self.register_buffer("spread", span.spread)
        rank = len(span.spread)
        self.latent = min(latent or rank, rank)
        self.register_buffer("shift", torch.zeros(self.latent))
        self.register_buffer("scale", torch.ones(self.latent))
        self.register_buffer("centres", torch.zeros(basins, rank))
        self.register_buffer("between", torch.zeros(rank, dtype=torch.bool))
        self.encoder = Residual(rank, width)
        self.decoder = Residual(rank, width)

    @property
    def span(self) -> Span:
        """The population's affine frame."""
        return Span(self.mean, self.basis, self.spread)

    def place(self, device: str) -> None:
        """Move the frame's vectors, and nothing else, to a device: latents stay on the CPU."""
        there = self.span.placed(device)
        self.mean, self.basis = there.mean, there.basis

    def encode_coordinates(self, c: Tensor) -> Tensor:
        """Latents (…, d), standardised, of coordinates (…, r)."""
        return (self.encoder(c)[..., : self.latent] - self.shift) / self.scale

    def decode_coordinates(self, z: Tensor) -> Tensor:
        """Coordinates (…, r) of latents (…, d)."""
        raw = z * self.scale + self.shift
        missing = len(self.spread) - self.latent
        return self.decoder(nn.functional.pad(raw, (0, missing)))

    def encode(self, v: Tensor) -> Tensor:
        """f_enc without noise: latents (…, d) of vectors (…, P)."""
        return self.encode_coordinates(self.span.project(v))

    def decode(self, z: Tensor) -> Tensor:
        """f_dec without noise: vectors (…, P) of latents (…, d)."""
        return self.span.lift(self.decode_coordinates(z))

    @torch.no_grad()
    def learn_basins(self, c: Tensor, basins: Tensor) -> None:
        """Note the basins' centres, and along which axes basins differ but their members do not.

        Args:
            c: members' coordinates (K, r). basins: the basin of each, (K,).
        """
        inside = [c[basins == b] for b in basins.unique()]
        self.centres.copy_(torch.stack([part.mean(0) for part in inside]))
        within = torch.cat([part - part.mean(0) for part in inside]).abs().amax(0)
        self.between.copy_(within < 1e-3)

    @torch.no_grad()
    def settle(self, z: Tensor) -> Tensor:
        """Decode latents (n, d) to vectors (n, P) that lie in a basin, not between two.

        Along the axes in which basins differ and their members do not, the nearest basin's value
        is taken. Without it about one unguided sample in seventy fell between basins, under 90 %.
        """
        c = self.decode_coordinates(z)
        centre = self.centres[self.nearest_basin(c)]
        return self.span.lift(torch.where(self.between, centre, c))

    @torch.no_grad()
    def nearest_basin(self, c: Tensor) -> Tensor:
        """The basin (n,) whose centre coordinates (n, r) are nearest to, where basins differ."""
        return torch.cdist(c[:, self.between], self.centres[:, self.between]).argmin(1)

    @torch.no_grad()
    def standardise(self, c: Tensor) -> None:
        """Fix shift and scale so that the latents of coordinates (n, r) have mean 0 and std 1.

        Latents that explode are the known failure of this method: the diffusion model assumes unit
        variance.
        """
        raw = self.encoder(c)[..., : self.latent]
        self.shift.copy_(raw.mean(0))
        self.scale.copy_(raw.std(0).clamp_min(1e-6))

    def reconstruction(
        self, c: Tensor, sigma: float, rho: float, g: torch.Generator
    ) -> Reconstruction:
        """Encode and decode coordinates (n, r) with both noises; see the module's equations.

        xi_V outside the span is removed exactly by the encoder's projection, so only its part
        inside is drawn; sigma is in units of the standardised coordinates.
        """
        xi_V = sigma * torch.randn(c.shape, generator=g)
        z = self.encode_coordinates(c + xi_V)
        xi_Z = rho * torch.randn(z.shape, generator=g)
        c_decoded = self.decode_coordinates(z + xi_Z)
        squared = ((c_decoded - c) * self.spread).square().sum(-1)
        return Reconstruction(z, c_decoded, squared)


@dataclass(frozen=True)
class Reconstruction:
    """Latents (n, d), decoded coordinates (n, r) and ||v - v'||^2 in R^P, shape (n,)."""

    z: Tensor
    coordinates: Tensor
    squared_error: Tensor


def mixtures(
    c: Tensor, basins: Tensor, size: int, width: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw fresh training vectors from each basin's Gaussian: combinations of its members.

    Forks of one early checkpoint are linearly connected, so their combinations are valid
    parameters too; without them a diffusion model of K points can only replicate (arXiv
    2506.07998). A basin of one member gives that member.

    Args:
        c: members' coordinates (K, r). basins: their basins (K,).
        size: how many to draw. width: in standard deviations of the basin.

    Returns:
        coordinates (size, r) and the basin of each, (size,).
    """
    known = basins.unique()
    of = known[torch.randint(len(known), (size,), generator=generator)]
    member = (basins[None, :] == of[:, None]).to(c.dtype)
    count = member.sum(1, keepdim=True)
    centre = member @ c / count
    weights = member * torch.randn(member.shape, generator=generator)
    weights = weights - member * weights.sum(1, keepdim=True) / count
    deviation = weights @ c / (count - 1).clamp_min(1).sqrt()
    return centre + width * deviation, of
