"""Validity (theory.md, Proposition 1): does a group of backbone images agree with the adaptation?

In: gradients and curvature vectors of candidates with a group label each, and the adaptation's curvature vectors. Out:
for each group its disagreement lam_j, the evidence for it and a verdict. One image's gradient is mostly its own noise,
so only groups are judged. Left out on purpose: what to do with the verdict (selection).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bat_ui.albat.evidence import (
    SMALLEST,
    Likelihood,
    Observed,
    Posterior,
    disagreements,
    least_noise,
    likelihood,
    noise_scale,
    observe,
    posterior,
)

VALID, DOUBTFUL, HARMFUL, UNKNOWN = "valid", "doubtful", "harmful", "too small to judge"
TOLERANCE = 0.05  # largest disagreement of a valid group by default, as a part of the prior variance 1 / delta
EVIDENCE = 2.0  # log-likelihood ratio that shows a disagreement; one of ten times the tolerance must be able to reach it


@dataclass(frozen=True)
class GroupVerdict:
    """One group's verdict. disagreement, interval (95 %) and tolerance are lam_j over the prior variance, lam_j * delta:
    0 agrees fully, 1 is as far off as an adapter that knows nothing; what it may be at most is the tolerance. evidence:
    log-likelihood ratio of lam_j against 0. power: the ratio to expect from a clearly harmful group of this size and
    curvature."""

    group: int
    size: int
    verdict: str
    disagreement: float
    interval: tuple[float, float]
    evidence: float
    power: float
    tolerance: float

    @property
    def middle(self) -> float:
        """The disagreement to reckon with, between the ends of the interval: the likeliest one of a small group is often
        none at all, where it only cannot tell.  What was not judged counts as an adapter that knows nothing."""
        judged = self.verdict != UNKNOWN and math.isfinite(self.interval[1])
        return sum(self.interval) / 2 if judged else max(self.disagreement, 1.0)


@dataclass(frozen=True)
class Validity:
    """All groups' verdicts, with the noise sigma^2 and the prior's ridge delta * sigma^2 that they rest on."""

    groups: tuple[GroupVerdict, ...]
    noise: float
    ridge: float

    def disagreement(self) -> dict[int, float]:
        """lam_j in units of the noise, by group, as it is to be reckoned with: lam_j / sigma^2."""
        return {g.group: g.middle / self.ridge for g in self.groups}


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
    tolerance: float | dict[int, float] = TOLERANCE,
) -> Validity:
    """lam_j of each group by maximum marginal likelihood of G_j ~ N(0, H_j + H_j (C + lam_j I) H_j), over sigma^2.

    gradients (n, k) and curvature (n, r, k) at the surrogate, groups (n,) labels, adaptation (..., k) curvature
    vectors of the adaptation images; ridge = delta sigma^2; noise = sigma^2, estimated from all groups if None, NOISE_PART
    of the unexplained scatter of images at least. The first round judges each group from the surrogate alone. Each further
    one judges it from a surrogate refit to the adaptation and to all other groups, these weighed by their own lam:
    (H^-1 + lam I)^-1. Refits are Newton steps.

    Verdict: too small to judge with fewer than SMALLEST images; else harmful if the whole interval of lam_j delta lies above
    the tolerance, one number or one by group label; else too small to judge if even ten times the tolerance (or 10) could
    not show; else valid if lam_j delta is within the tolerance, with its whole interval where the evidence reaches EVIDENCE
    and it is plain that the group disagrees; else doubtful.
    """
    gradients, curvature, adaptation = _shared_range(gradients, curvature, adaptation)
    labels = torch.unique(groups)
    members = [groups == label for label in labels]
    own, curvatures = [gradients[m] for m in members], [curvature[m] for m in members]
    observed = observe([each.sum(0) for each in own], curvatures)
    found = likelihood(observed, Posterior(observed, adaptation)(ridge))
    estimate, spread = noise is None, disagreements(observed)
    least = least_noise(own, curvatures, observed) if estimate else 0.0
    noise = noise_scale(found, spread, least) if estimate else noise
    lam = found.maximise(noise)
    for _ in range(rounds - 1 if len(labels) > 1 else 0):
        found, lam = _refit(observed, lam, posterior(adaptation, ridge), noise)
        noise = noise_scale(found, spread, least) if estimate else noise
    peak = found.maximise(noise)
    low, high = found.interval(noise, peak)
    evidence = found(peak, noise) - found(torch.zeros_like(peak), noise)
    allowed = [tolerance[label] if isinstance(tolerance, dict) else tolerance for label in labels.tolist()]
    clear = 10 * torch.tensor(allowed, dtype=torch.float64).clamp_max(1)  # ten times as far off as knowing nothing
    power = found.power(clear[:, None] / ridge)
    verdicts = []
    for j, label in enumerate(labels.tolist()):
        if len(own[j]) < SMALLEST:
            verdict = UNKNOWN
        elif low[j] * ridge > allowed[j]:
            verdict = HARMFUL
        elif power[j] < EVIDENCE:
            verdict = UNKNOWN
        else:
            most = high[j] if evidence[j] >= EVIDENCE else peak[j]
            verdict = VALID if most * ridge <= allowed[j] else DOUBTFUL
        verdicts.append(
            GroupVerdict(
                group=label,
                size=int(members[j].sum()),
                verdict=verdict,
                disagreement=float(peak[j] * ridge),
                interval=(float(low[j] * ridge), float(high[j] * ridge)),
                evidence=float(evidence[j]),
                power=float(power[j]),
                tolerance=allowed[j],
            )
        )
    return Validity(tuple(verdicts), noise, ridge)


def _refit(observed: Observed, lam: Tensor, covariance: Tensor, noise: float) -> tuple[Likelihood, Tensor]:
    """One round over all groups: each judged at the Newton step to the adaptation and the others, (H_i^-1 + lam_i I)^-1.

    covariance (k, k) is the adaptation's C. With M the covariance of everything and group j inside it, the others' own
    (S^-1 - D)^-1 on j's range follows from S = basis' M basis, so no (k x k) matrix is inverted for a group.
    """
    weights = observed.values / (1 + lam[:, None] * observed.values)  # D, the groups' curvatures after shrinkage
    pulls = observed.values.sqrt() * observed.white / (1 + lam[:, None] * observed.values)
    covariance, lam = covariance.clone(), lam.clone()
    _add(covariance, observed.basis.transpose(0, 1).flatten(1), weights.flatten())
    pull = -(observed.basis @ pulls[:, :, None]).sum(0)[:, 0]
    found = []
    for j, basis in enumerate(observed.basis):
        cross = covariance @ basis
        inner, eye = basis.T @ cross, torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        without = torch.linalg.solve(eye - inner * weights[j], inner)  # (S^-1 - D)^-1 = (I - S D)^-1 S
        others = pull + basis @ pulls[j]
        offset = torch.linalg.solve(eye - inner * weights[j], cross.T @ others)
        root = observed.values[j].sqrt()
        moved = Observed(basis[None], observed.values[j : j + 1], (observed.white[j] + root * offset)[None])
        found.append(likelihood(moved, (without + without.T)[None] / 2))
        lam[j] = found[j].maximise(noise)[0]
        shrunk = 1 / (1 + lam[j] * observed.values[j])
        new_weight, new_pull = observed.values[j] * shrunk, root * observed.white[j] * shrunk
        _add(covariance, basis, new_weight - weights[j])
        pull = others - basis @ new_pull
        weights[j], pulls[j] = new_weight, new_pull
    fields = ("slopes", "squares", "ranks", "constants")
    return Likelihood(*(torch.cat([getattr(x, name) for x in found]) for name in fields)), lam


def _shared_range(gradients: Tensor, curvature: Tensor, adaptation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in coordinates of the range of every curvature together, where that is smaller than the sketch: no
    likelihood sees the rest."""
    vectors = torch.cat([adaptation.flatten(0, -2), curvature.flatten(0, -2)]).double()
    if len(vectors) < vectors.shape[1]:
        basis = torch.linalg.qr(vectors.T).Q
        return gradients.double() @ basis, curvature.double() @ basis, adaptation.double() @ basis
    return gradients, curvature, adaptation


def _add(covariance: Tensor, basis: Tensor, weight: Tensor) -> None:
    """(covariance^-1 + basis diag(weight) basis')^-1 in place, by Woodbury."""
    cross = covariance @ basis
    inner = weight[:, None] * (basis.T @ cross)
    inner.diagonal().add_(1)
    covariance -= cross @ torch.linalg.solve(inner, weight[:, None] * cross.T)
