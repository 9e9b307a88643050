"""Marginal likelihood of gradients in sketch space: the noise scale, the prior strength and a group's disagreement.

All three are read off one Gaussian (theory.md, Proposition 1), written in units of the noise so that sigma^2 only
scales it: G ~ N(0, sigma^2 [H + H (C + lam I) H]), with C = (H_A + ridge I)^-1. In theory.md's units C is sigma^2
times this one, lam likewise, and delta = ridge / sigma^2. Every group is decomposed once; any lam and sigma^2 then
costs O(rank).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CUTOFF = 1e-8  # eigenvalues of a curvature below this part of the largest one are rounding
INTERVAL = 1.92  # half the 95 % quantile of chi-squared with one degree of freedom


@dataclass(frozen=True)
class Spectrum:
    """H = basis diag(values) basis' on its range: basis (k, q), values (q,), float64."""

    basis: Tensor
    values: Tensor


def spectrum(vectors: Tensor) -> Spectrum:
    """Decompose H = sum of u u' over vectors (m, k) in the smaller of its two Gram matrices."""
    vectors = vectors.reshape(-1, vectors.shape[-1]).double()
    if len(vectors) < vectors.shape[1]:
        values, left = torch.linalg.eigh(vectors @ vectors.T)
        keep = values > CUTOFF * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
        values = values[keep]
        return Spectrum(vectors.T @ left[:, keep] / values.sqrt(), values)
    values, basis = torch.linalg.eigh(vectors.T @ vectors)
    keep = values > CUTOFF * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    return Spectrum(basis[:, keep], values[keep])


@dataclass(frozen=True)
class Likelihood:
    """log N(G; 0, noise [H + H (C + lam I) H]) as a function of noise and lam: slopes (q,), squares (q,)."""

    slopes: Tensor
    squares: Tensor
    constant: float

    def __call__(self, lam: Tensor, noise: float) -> Tensor:
        """Log-likelihood, up to a constant that depends on neither, for lam of any shape."""
        scale = 1 + lam[..., None] * self.slopes
        total = scale.log() + self.squares / (noise * scale)
        return -0.5 * (total.sum(-1) + len(self.slopes) * torch.as_tensor(noise).double().log() + self.constant)

    def grid(self, noise: float, steps: int = 400) -> Tensor:
        """Zero and a logarithmic grid that holds the maximum: no term rises beyond (square / noise - 1) / slope."""
        if len(self.slopes) == 0:
            return torch.zeros(1, dtype=torch.float64)
        low = 1e-3 / self.slopes.max()
        high = torch.maximum(((self.squares / noise - 1) / self.slopes).max(), 1 / self.slopes.max()) * 1e3
        values = torch.linspace(low.log().item(), high.log().item(), steps, dtype=torch.float64).exp()
        return torch.cat([values.new_zeros(1), values])

    def maximise(self, noise: float) -> float:
        """The lam >= 0 of highest likelihood: the best grid point, refined twice around it."""
        grid = self.grid(noise)
        for _ in range(3):
            best = int(self(grid, noise).argmax())
            low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, len(grid) - 1)].item()
            peak = grid[best].item()
            grid = torch.linspace(low, high, 41, dtype=torch.float64)
        return peak

    def interval(self, noise: float, peak: float) -> tuple[float, float]:
        """95 % profile interval of lam, to the resolution of the grid."""
        grid = self.grid(noise)
        inside = grid[self(grid, noise) >= self(torch.tensor(peak).double(), noise) - INTERVAL]
        if len(inside) == 0:
            return peak, peak
        high = float("inf") if inside[-1] == grid[-1] else inside[-1].item()
        return min(inside[0].item(), peak), max(high, peak)

    def power(self, lam: float) -> float:
        """Log-likelihood ratio to expect against lam = 0 if lam were the truth: how well this group can be judged."""
        scaled = lam * self.slopes
        return 0.5 * (scaled - scaled.log1p()).sum().item()


def likelihood(gradient: Tensor, curvature: Spectrum, covariance: Tensor | None) -> Likelihood:
    """The likelihood of gradient (k,) under curvature H and C = covariance (k, k), or C = 0.

    Only the gradient's part in the range of H is judged. One Cholesky of I + sqrt(H) C sqrt(H) and one
    eigen-decomposition.
    """
    root = curvature.values.sqrt()
    white = curvature.basis.T @ gradient.double() / root
    constant = curvature.values.log().sum().item()
    if covariance is None:
        return Likelihood(curvature.values, white.square(), constant)
    inner = root[:, None] * (curvature.basis.T @ covariance @ curvature.basis) * root
    factor = torch.linalg.cholesky(inner + torch.eye(len(root), dtype=inner.dtype, device=inner.device))
    half = torch.linalg.solve_triangular(factor, torch.diag(root), upper=False)
    slopes, vectors = torch.linalg.eigh(half @ half.T)
    rotated = vectors.T @ torch.linalg.solve_triangular(factor, white[:, None], upper=False)[:, 0]
    constant += 2 * factor.diagonal().log().sum().item()
    return Likelihood(slopes.clamp_min(0) + 1e-300, rotated.square(), constant)


def posterior(adaptation: Tensor, ridge: float) -> Tensor:
    """C = (H_A + ridge I)^-1 (k, k) in units of the noise, from adaptation curvature vectors (..., k)."""
    vectors = adaptation.reshape(-1, adaptation.shape[-1]).double()
    inner = vectors @ vectors.T
    inner.diagonal().add_(ridge)
    eye = torch.eye(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    return (eye - vectors.T @ torch.linalg.solve(inner, vectors)) / ridge


def noise_scale(likelihoods: list[Likelihood]) -> float:
    """sigma^2 by maximum marginal likelihood over all groups, each with its own best lam.

    Directions in which a group's curvature is small carry noise alone, so the noise stays apart from disagreement.
    """
    sizes = [x.squares.mean().item() for x in likelihoods if len(x.squares)]
    grid = torch.linspace(math.log(1e-6 * min(sizes)), math.log(2 * max(sizes)), 30, dtype=torch.float64).exp()

    def profile(noise: float) -> float:
        return sum(x(x.grid(noise, 80), noise).max().item() for x in likelihoods)

    noise = max(grid.tolist(), key=profile)
    count = sum(len(x.squares) for x in likelihoods)
    for _ in range(5):
        total = sum((x.squares / (1 + x.maximise(noise) * x.slopes)).sum().item() for x in likelihoods)
        noise = total / count
    return noise


@dataclass(frozen=True)
class Observed:
    """A summed gradient (k,) and the spectrum of its curvature; rest: for left-out images, the curvature vectors (...,
    k) of the images that its surrogate was trained on."""

    gradient: Tensor
    curvature: Spectrum
    rest: Tensor | None = None


def estimate_scales(
    pool: list[Observed], adaptation: Tensor, starts: list[Observed], judges: list[Observed]
) -> tuple[float, float]:
    """(sigma^2, ridge = delta sigma^2) by maximum marginal likelihood (theory.md, Words: C).

    pool: the candidates' groups at the surrogate, each with its own best lam; adaptation (..., k): curvature vectors
    there. starts: subject images where the prior is centred (the untrained adapter), so C = 0 and lam = 1 / ridge.
    judges: left-out subject images at surrogates trained on the rest, C = (H_rest + ridge I)^-1. Both may be empty:
    the groups that agree best already show how far the truth lies in directions that the subject's images leave open.
    The ridge is the best of a grid of half decades, refined once to fifths of a decade, and at most the adaptation's
    largest curvature: training moves at least the direction that the subject's images determine best.
    """
    zero = torch.zeros((), dtype=torch.float64)
    largest = spectrum(adaptation).values.max().item()

    def score(exponent: float) -> tuple[float, float, float]:
        ridge = largest * 10**exponent
        covariance = posterior(adaptation, ridge)
        found = [likelihood(o.gradient, o.curvature, covariance) for o in pool]
        noise = noise_scale(found)
        total = sum(x(torch.tensor(x.maximise(noise), dtype=torch.float64), noise).item() for x in found)
        for o in starts:
            total += likelihood(o.gradient, o.curvature, None)(zero + 1 / ridge, noise).item()
        for o in judges:
            total += likelihood(o.gradient, o.curvature, posterior(o.rest, ridge))(zero, noise).item()
        return total, noise, ridge

    exponents = [i / 2 for i in range(-10, 1)]
    scores = {e: score(e) for e in exponents}
    best = max(scores, key=lambda e: scores[e][0])
    scores |= {best + step / 10: score(best + step / 10) for step in (-4, -2, 2, 4) if best + step / 10 <= 0}
    return max(scores.values())[1:]
