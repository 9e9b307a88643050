"""Validity (theory.md, Proposition 1): does a group of backbone images agree with the adaptation?

In: gradients and curvature vectors of candidates with a group label each, and the adaptation's curvature vectors. Out:
for each group its disagreement lam_j, the evidence for it and a verdict. One image's gradient is mostly its own noise,
so only groups are judged. Left out on purpose: what to do with the verdict (selection).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bat_ui.albat.evidence import likelihood, noise_scale, posterior, spectrum

VALID, DOUBTFUL, HARMFUL, UNKNOWN = "valid", "doubtful", "harmful", "too small to judge"
TOLERANCE = 0.05  # largest disagreement of a valid group, as a part of the prior variance 1 / delta
POWER = 2.0  # log-likelihood ratio that a disagreement of ten times the tolerance must be able to reach


@dataclass(frozen=True)
class GroupVerdict:
    """One group's verdict. disagreement and interval (95 %) are lam_j over the prior variance, lam_j * delta: 0 agrees
    fully, 1 is as far off as an adapter that knows nothing. evidence: log-likelihood ratio of lam_j against 0.
    power: the ratio to expect from a clearly harmful group of this size and curvature."""

    group: int
    size: int
    verdict: str
    disagreement: float
    interval: tuple[float, float]
    evidence: float
    power: float


@dataclass(frozen=True)
class Validity:
    """All groups' verdicts, with the noise sigma^2 and the prior's ridge delta * sigma^2 that they rest on."""

    groups: tuple[GroupVerdict, ...]
    noise: float
    ridge: float

    def disagreement(self) -> dict[int, float]:
        """lam_j in units of the noise, by group: lam_j / sigma^2."""
        return {g.group: g.disagreement / self.ridge for g in self.groups}


def cluster(vectors: Tensor, groups: int, seed: int, rounds: int = 50) -> Tensor:
    """Labels (n,) of spherical k-means on unit CLIP vectors (n, d), started by k-means++; at most n groups."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(vectors.detach().cpu().double(), dim=1)
    centres = vectors[torch.randint(len(vectors), (1,), generator=generator)]
    for _ in range(min(groups, len(vectors)) - 1):
        far = (1 - (vectors @ centres.T).max(1).values).clamp_min(1e-12)
        centres = torch.cat([centres, vectors[torch.multinomial(far, 1, generator=generator)]])
    labels = (vectors @ centres.T).argmax(1)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, labels, vectors)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(sums, dim=1), centres)
        new = (vectors @ centres.T).argmax(1)
        if torch.equal(new, labels):
            break
        labels = new
    return torch.unique(labels, return_inverse=True)[1]


def group_disagreement(
    gradients: Tensor,
    curvature: Tensor,
    groups: Tensor,
    adaptation: Tensor,
    *,
    ridge: float,
    noise: float | None = None,
    rounds: int = 3,
    tolerance: float = TOLERANCE,
) -> Validity:
    """lam_j of each group by maximum marginal likelihood of G_j ~ N(0, H_j + H_j (C + lam_j I) H_j), over sigma^2.

    gradients (n, k) and curvature (n, r, k) at the surrogate, groups (n,) labels, adaptation (..., k) curvature
    vectors of the adaptation images; ridge = delta sigma^2; noise = sigma^2, estimated from all groups if None. The
    first round judges each group from the surrogate alone. Each further one judges it from a surrogate refit to the
    adaptation and to all other groups, these weighed by their own lam: (H^-1 + lam I)^-1. Refits are Newton steps.

    Verdict: harmful if the whole interval of lam_j delta lies above the tolerance; else too small to judge if even ten
    times the tolerance could not show; else valid if lam_j delta <= tolerance; else doubtful.
    """
    labels = [int(g) for g in torch.unique(groups)]
    members = [groups == g for g in labels]
    sums = [gradients[m].double().sum(0) for m in members]
    spectra = [spectrum(curvature[m]) for m in members]
    covariance, offset = posterior(adaptation, ridge), gradients.new_zeros(gradients.shape[1]).double()
    found = [likelihood(g, s, covariance) for g, s in zip(sums, spectra)]
    estimate = noise is None
    noise = noise_scale(found) if estimate else noise
    lam = [x.maximise(noise) for x in found]
    if len(labels) > 1:
        base = torch.linalg.inv(covariance)
        for _ in range(rounds - 1):
            for j in range(len(labels)):
                precision, pull = base.clone(), torch.zeros_like(offset)
                for i, (s, g) in enumerate(zip(spectra, sums)):
                    if i != j:
                        shrink = 1 + lam[i] * s.values
                        precision += (s.basis * (s.values / shrink)) @ s.basis.T
                        pull -= s.basis @ ((s.basis.T @ g) / shrink)
                covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
                offset = covariance @ pull
                moved = sums[j] + spectra[j].basis @ (spectra[j].values * (spectra[j].basis.T @ offset))
                found[j] = likelihood(moved, spectra[j], covariance)
                lam[j] = found[j].maximise(noise)
            noise = noise_scale(found) if estimate else noise
    verdicts = []
    for j, label in enumerate(labels):
        peak = found[j].maximise(noise)
        low, high = found[j].interval(noise, peak)
        ends = torch.tensor([peak, 0.0], dtype=torch.float64)
        best, none = found[j](ends, noise).tolist()
        power = found[j].power(10 * tolerance / ridge)
        if low * ridge > tolerance:
            verdict = HARMFUL
        elif power < POWER:
            verdict = UNKNOWN
        else:
            verdict = VALID if peak * ridge <= tolerance else DOUBTFUL
        verdicts.append(
            GroupVerdict(
                group=label,
                size=int(members[j].sum()),
                verdict=verdict,
                disagreement=peak * ridge,
                interval=(low * ridge, high * ridge),
                evidence=best - none,
                power=power,
            )
        )
    return Validity(tuple(verdicts), noise, ridge)
