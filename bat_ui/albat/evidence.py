"""Marginal likelihood of gradients in sketch space: the noise scale, the prior strength and a group's disagreement.

All three are read off one Gaussian (theory.md, Proposition 1), written in units of the noise so that sigma^2 only
scales it: G ~ N(0, sigma^2 [H + H (C + lam I) H]), with C = (H_A + ridge I)^-1. In theory.md's units C is sigma^2
times this one, lam likewise, and delta = ridge / sigma^2. All groups are decomposed at once; any lam and sigma^2 then
costs O(rank) a group. Groups differ in rank: the smaller ones are padded with zeros, which add nothing to a likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CUTOFF = 1e-8  # eigenvalues of a curvature below this part of the largest one are rounding
# The least part of the images' unexplained scatter that is noise: on sketches of real images a likelihood that was free to
# go lower took a thousandth at times, and then called half of the groups harmful, or all of them valid.
NOISE_PART = 0.1
SMALLEST = 4  # images of a group: with fewer, their scatter does not tell noise from a pull
INTERVAL = 1.92  # half the 95 % quantile of chi-squared with one degree of freedom


def spectrum(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(basis (k, q), values (q,)) with H = sum of u u' = basis diag(values) basis' over vectors (..., k), float64."""
    vectors = vectors.reshape(-1, vectors.shape[-1]).double()
    few = len(vectors) < vectors.shape[1]
    values, basis = torch.linalg.eigh(vectors @ vectors.T if few else vectors.T @ vectors)
    keep = values > CUTOFF * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    values, basis = values[keep], basis[:, keep]
    return (vectors.T @ basis / values.sqrt() if few else basis), values


@dataclass(frozen=True)
class Observed:
    """Summed gradients of m groups on the ranges of their curvatures H = basis diag(values) basis', padded with zeros.

    basis (m, k, q), values (m, q), white (m, q) = H^-1/2 G.
    """

    basis: Tensor
    values: Tensor
    white: Tensor

    def __getitem__(self, rows: slice) -> Observed:
        return Observed(self.basis[rows], self.values[rows], self.white[rows])


def observe(gradients: Sequence[Tensor], curvatures: Sequence[Tensor]) -> Observed:
    """Groups of summed gradients (k,) and curvature vectors (..., k)."""
    spectra = [spectrum(vectors) for vectors in curvatures]
    basis = pad_sequence([basis.T for basis, _ in spectra], batch_first=True).mT
    values = pad_sequence([values for _, values in spectra], batch_first=True)
    white = (basis.mT @ torch.stack(list(gradients)).double()[:, :, None])[:, :, 0]
    return Observed(basis, values, torch.where(values > 0, white / values.clamp_min(1e-300).sqrt(), 0))


class Posterior:
    """C = (H_A + ridge I)^-1 seen from some groups' ranges, in units of the noise: basis' C basis for any ridge."""

    def __init__(self, observed: Observed, adaptation: Tensor):
        vectors = adaptation.reshape(-1, adaptation.shape[-1]).double()
        self.gram, self.reach = vectors @ vectors.T, vectors @ observed.basis
        self.own = observed.basis.mT @ observed.basis

    def __call__(self, ridge: float) -> Tensor:
        """(m, q, q)."""
        inner = self.gram.clone()
        inner.diagonal().add_(ridge)
        return (self.own - self.reach.mT @ torch.linalg.solve(inner, self.reach)) / ridge


@dataclass(frozen=True)
class Likelihood:
    """log N(G; 0, noise [H + H (C + lam I) H]) of m groups: slopes (m, q), squares (m, q), ranks (m,), constants (m,)."""

    slopes: Tensor
    squares: Tensor
    ranks: Tensor
    constants: Tensor

    def __call__(self, lam: Tensor, noise: float) -> Tensor:
        """Log-likelihoods (m, ...), up to a constant of each group that depends on neither, for lam (m, ...)."""
        lift = (slice(None), *[None] * (lam.ndim - 1))
        scale = 1 + lam[..., None] * self.slopes[lift]
        total = (scale.log() + self.squares[lift] / (noise * scale)).sum(-1)
        return -0.5 * (total + (self.ranks * math.log(noise) + self.constants)[lift])

    def integrated(self, lam: Tensor, noise: float) -> Tensor:
        """Log-likelihoods (m,) with lam integrated out, its values lam (s,) equally likely."""
        return self(lam.expand(len(self.slopes), -1), noise).logsumexp(1) - math.log(len(lam))

    def grid(self, noise: float, steps: int = 400) -> Tensor:
        """(m, steps + 1): zero and a logarithmic grid that holds the maximum, since no term rises beyond
        (square / noise - 1) / slope."""
        slopes = self.slopes.clamp_min(1e-300)
        steepest = slopes.amax(1)
        turns = torch.where(self.slopes > 0, (self.squares / noise - 1) / slopes, 0).amax(1)
        low, high = (1e-3 / steepest).log(), (torch.maximum(turns, 1 / steepest) * 1e3).log()
        spread = torch.linspace(0, 1, steps, dtype=low.dtype, device=low.device)
        return torch.nn.functional.pad((low[:, None] + (high - low)[:, None] * spread).exp(), (1, 0))

    def maximise(self, noise: float) -> Tensor:
        """The lam >= 0 (m,) of highest likelihood: the best grid point, refined three times around it."""
        grid = self.grid(noise)
        spread = torch.linspace(0, 1, 41, dtype=grid.dtype, device=grid.device)
        for refinement in range(4):
            best = self(grid, noise).argmax(1, keepdim=True)
            if refinement == 3:
                return grid.gather(1, best)[:, 0]
            low = grid.gather(1, (best - 1).clamp_min(0))
            high = grid.gather(1, (best + 1).clamp_max(grid.shape[1] - 1))
            grid = low + (high - low) * spread

    def interval(self, noise: float, peak: Tensor) -> tuple[Tensor, Tensor]:
        """95 % profile intervals (m,), (m,) of lam around peak (m,), to the resolution of the grid."""
        grid = self.grid(noise)
        inside = self(grid, noise) >= self(peak, noise)[:, None] - INTERVAL
        low = torch.where(inside, grid, float("inf")).amin(1)
        high = torch.where(inside, grid, 0).amax(1)
        high = torch.where(inside[:, -1], float("inf"), high)
        return torch.minimum(low, peak), torch.maximum(high, peak)

    def power(self, lam: float | Tensor) -> Tensor:
        """Log-likelihood ratios (m,) to expect against lam = 0 if lam were the truth: how well a group can be judged.

        lam is one number or (m, 1)."""
        scaled = lam * self.slopes
        return 0.5 * (scaled - scaled.log1p()).sum(1)


def likelihood(observed: Observed, inner: Tensor | None = None) -> Likelihood:
    """The likelihoods of the groups' gradients under their curvatures and inner = basis' C basis (m, q, q), or C = 0.

    Only the part of a gradient in the range of its H is judged.
    """
    values, white = observed.values, observed.white
    ranks = (values > 0).sum(1)
    constants = torch.where(values > 0, values.clamp_min(1e-300).log(), 0).sum(1)
    if inner is None:
        return Likelihood(values, white.square(), ranks, constants)
    root = values.sqrt()
    inner = root[:, :, None] * inner * root[:, None, :]
    factor = torch.linalg.cholesky(inner + torch.eye(inner.shape[1], dtype=inner.dtype, device=inner.device))
    half = torch.linalg.solve_triangular(factor, torch.diag_embed(root), upper=False)
    slopes, vectors = torch.linalg.eigh(half @ half.mT)
    rotated = (vectors.mT @ torch.linalg.solve_triangular(factor, white[:, :, None], upper=False))[:, :, 0]
    constants = constants + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return Likelihood(slopes.clamp_min(0), rotated.square(), ranks, constants)


def posterior(adaptation: Tensor, ridge: float) -> Tensor:
    """C = (H_A + ridge I)^-1 (k, k) in units of the noise, from adaptation curvature vectors (..., k)."""
    vectors = adaptation.reshape(-1, adaptation.shape[-1]).double()
    inner = vectors @ vectors.T
    inner.diagonal().add_(ridge)
    eye = torch.eye(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    return (eye - vectors.T @ torch.linalg.solve(inner, vectors)) / ridge


def disagreements(observed: Observed) -> Tensor:
    """The values of lam (50,) to integrate over: zero, and a thousandth to a hundred thousand of what the largest curvature
    would show, in sixths of a decade."""
    spread = torch.logspace(-3, 5, 49, dtype=observed.values.dtype, device=observed.values.device)
    return torch.nn.functional.pad(spread / observed.values.amax(), (1, 0))


def unexplained_scatter(gradients: Sequence[Tensor], curvatures: Sequence[Tensor], observed: Observed) -> float:
    """What sigma^2 would be if all that the images' curvatures leave unexplained of their gradients were noise.

    Where no group has SMALLEST images, all of them together count as one; 0 if these are no more either.

    gradients (n_j, k) and curvatures (n_j, r, k) of each group's images, `observed` the groups. One half of a group's images
    says where its optimum lies, which with their own curvatures predicts the gradients of the other half, and the other way
    round; what is left differs from image to image. Of several ridges, parts of the largest curvature, that one counts which
    predicts best, or no prediction at all if all do worse. Measured as `white` is.
    """
    if max(map(len, gradients)) < SMALLEST <= sum(map(len, gradients)):
        gradients, curvatures = [torch.cat(tuple(gradients))], [torch.cat(tuple(curvatures))]
        observed = observe([gradients[0].sum(0)], curvatures)
    parts = (1.0, 0.1, 0.01)
    left, ranks = torch.zeros(1 + len(parts), dtype=torch.float64), 0
    for own, curvature, basis, values in zip(gradients, curvatures, observed.basis, observed.values):
        if len(own) < SMALLEST:
            continue
        own, curvature, seen = own.double(), curvature.double(), values > 0
        if not seen.any():  # gradients that are all zero tell nothing
            continue
        whiten, ranks = basis[:, seen] / values[seen].sqrt(), ranks + int(seen.sum())
        for first in (0, 1):
            known, rest = slice(first, None, 2), slice(1 - first, None, 2)
            vectors, pull = curvature[known].flatten(0, 1), own[known].sum(0)
            inner, seen_pull = vectors @ vectors.T, vectors @ pull
            steps = [torch.zeros_like(pull)]
            for ridge in values.max() * torch.tensor(parts, dtype=inner.dtype):
                solved = torch.linalg.solve(inner + ridge * torch.eye(len(inner), dtype=inner.dtype), seen_pull)
                steps.append((vectors.T @ solved - pull) / ridge)
            explained = torch.einsum("nrk,nrs->nsk", curvature[rest], curvature[rest] @ torch.stack(steps, 1))
            white = (own[rest][:, None] + explained) @ whiten
            count = len(white)
            left += (white - white.mean(0)).square().sum((0, 2)) * count / (count - 1)
    return float(left.min()) / max(ranks, 1)


def least_noise(gradients: Sequence[Tensor], curvatures: Sequence[Tensor], observed: Observed) -> float:
    """What sigma^2 is at least: NOISE_PART of the unexplained scatter."""
    return NOISE_PART * unexplained_scatter(gradients, curvatures, observed)


def noise_scale(groups: Likelihood, lam: Tensor, least: float = 0.0) -> float:
    """sigma^2 of highest marginal likelihood from `least` on, each group's own disagreement integrated out over the values
    lam (s,).

    Directions in which a group's curvature is small carry noise alone, so the noise stays apart from disagreement. With the
    likeliest disagreement instead of the integral there are as many free parameters as groups, and they explain the noise
    away: on the same gradients sigma^2 then fell by up to a factor of 200 from one grouping to another.
    """
    sizes = groups.squares.sum(1)[groups.ranks > 0] / groups.ranks[groups.ranks > 0]
    low, high = max(1e-6 * float(sizes.min()), least), max(2 * float(sizes.max()), least)
    exponents = torch.linspace(math.log(low), math.log(high), 25, dtype=torch.float64)
    step = float(exponents[1] - exponents[0])
    for _ in range(11):  # down to a millionth
        best = max(exponents.tolist(), key=lambda x: float(groups.integrated(lam, math.exp(x)).sum()))
        step /= 4
        exponents = (best + step * torch.arange(-4, 5, dtype=torch.float64)).clamp_min(math.log(low))
    return math.exp(best)


@dataclass(frozen=True)
class Judge:
    """Left-out images at a surrogate of the others: their observed gradient (one group), the others' curvature (..., k)."""

    observed: Observed
    rest: Tensor


def estimate_scales(
    pool: Observed, adaptation: Tensor, judges: Sequence[Judge] = (), least: float = 0.0
) -> tuple[float, float]:
    """(sigma^2, ridge = delta sigma^2) by maximum marginal likelihood (theory.md, Words: C).

    pool: the candidates' groups at the surrogate, each one's lam integrated out; adaptation (..., k): curvature vectors
    there. judges: left-out subject images at surrogates trained on the rest, C = (H_rest + ridge I)^-1. There may be none:
    the groups that agree best already show how far the truth lies in directions that the subject's images leave open.
    sigma^2 is `least` at least. The ridge is the best of a grid of half decades, refined once to fifths of a decade, and at
    most the adaptation's largest curvature: training moves at least the direction that the subject's images determine best.
    """
    largest = spectrum(adaptation)[1].max().item()
    seen, lam = Posterior(pool, adaptation), disagreements(pool)
    left_out = [(judge.observed, Posterior(judge.observed, judge.rest)) for judge in judges]

    def score(exponent: float) -> tuple[float, float, float]:
        ridge = largest * 10**exponent
        found = likelihood(pool, seen(ridge))
        noise = noise_scale(found, lam, least)
        total = found.integrated(lam, noise).sum().item()
        for observed, inner in left_out:
            at = likelihood(observed, inner(ridge))
            total += at(torch.zeros_like(at.constants), noise).sum().item()
        return total, noise, ridge

    exponents = [i / 2 for i in range(-10, 1)]
    scores = {e: score(e) for e in exponents}
    best = max(scores, key=lambda e: scores[e][0])
    scores |= {best + step / 10: score(best + step / 10) for step in (-4, -2, 2, 4) if best + step / 10 <= 0}
    return max(scores.values())[1:]
