"""The suite's rows as values: which rows count, a run's value at its best and last step, differences, intervals.

In: rows of results.jsonl.  Out: `Values`, one number a run or subject, and statistics of them.  A subject's value is the
mean over its seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bat_ui.evaluation.rules import ABLATIONS, RULES

RESAMPLES = 10_000
REFERENCES = ("none", "albat")
ALL_RULES = RULES + ABLATIONS
Values = dict[tuple, float]  # by run (style, subject, seed), or by subject (style, subject)


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Percentile 95 % interval of the mean, values drawn with replacement; (nan, nan) for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.asarray(values, np.float64)[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def family_interval(values: Values) -> tuple[float, float]:
    """95 % interval of the mean by Student's t over families, whose two styles are no independent subjects; (nan, nan) for
    fewer than two families.

    A percentile bootstrap over a dozen subjects is too narrow: the same families in two styles count twice there.
    """
    from scipy.stats import t

    means = np.array(list(by_family(values).values()))
    if len(means) < 2:
        return float("nan"), float("nan")
    half = t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
    return float(means.mean() - half), float(means.mean() + half)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's coefficient, ties sharing their mean rank; nan if a side is constant."""
    a, b = _ranks(x), _ranks(y)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def main_rows(rows: Sequence[dict], split: str = "suite") -> list[dict]:
    """The finished runs of one split under the configuration and length, and for rules of sketches the form of the method,
    that came last; of a rule's the schedule that came last, and of what remains the number and strength of which there is
    most, of equally many the last; at the steps at which every run was measured, for who looks more often finds a lower
    lowest."""
    rows = [r for r in rows if r["split"] == split and not r["variant"]]
    rows = _latest(rows, lambda r: (r["config"], r["total_steps"]))
    newest = next((r["selection"] for r in reversed(rows) if r["selection"]), None)
    kept = []
    for rule in ALL_RULES:
        found = [r for r in rows if r["rule"] == rule and r["selection"] in (None, newest)]
        found = _latest(found, lambda r: r["schedule"])
        kept += _most(found, lambda r: (r["number"], r["strength"]))
    common, finished = common_steps(kept), {(r["rule"], *_run_of(r)) for r in kept if _ends(r)}
    at_common = (r for r in kept if r["step"] in common or r["rule"] == "backbone")
    return [r for r in at_common if (r["rule"], *_run_of(r)) in finished]


def at_best_step(rows: Sequence[dict], measure: str = "heldout_loss") -> Values:
    """A measure at each run's step of lowest held-out loss (at its last one where there is no truth)."""
    return _by_run(rows, lambda run: min(run, key=lambda r: _order(r))[measure])


def at_last_step(rows: Sequence[dict], measure: str = "heldout_loss") -> Values:
    """A measure at each run's last step."""
    return _by_run(rows, lambda run: max(run, key=lambda r: r["step"]).get(measure))


def lowest_at_first(rows: Sequence[dict]) -> Values:
    """1 for each run whose held-out loss is lowest at the first of its steps, else 0."""
    return _by_run(rows, lambda run: float(min(run, key=_order) is min(run, key=lambda r: r["step"])))


def over_seeds(values: Values) -> Values:
    """Runs' values by subject: the mean over its seeds."""
    found: dict[tuple, list[float]] = {}
    for key, value in values.items():
        found.setdefault(key[:2], []).append(value)
    return {key: statistics.fmean(v) for key, v in found.items()}


def paired(values: Values, reference: Values) -> Values:
    """Differences to a reference by subject: the mean over the seeds that both have run."""
    return over_seeds({key: values[key] - reference[key] for key in values if key in reference})


def log_ratios(values: Values, reference: Values) -> Values:
    """Log ratios to a reference by subject: the mean over the seeds that both have run."""
    return paired(*({run: math.log(v) for run, v in part.items()} for part in (values, reference)))


class Point(NamedTuple):
    """A rule's predicted error and its held-out loss at the last step, as a part of that of `none`."""

    predicted: float
    measured: float
    rule: str
    run: tuple[str, str, int]


def predicted_and_measured(by_rule: dict[str, list[dict]], prediction: str) -> list[Point]:
    """The points of every run that has its `none` and the field `prediction`, made by the form of the method that the rows
    of sketches are of."""
    newest = next((r["selection"] for rows in by_rule.values() for r in rows if r["selection"]), None)
    losses = {rule: at_last_step(rows) for rule, rows in by_rule.items()}
    none = losses.get("none", {})
    return [
        Point(value, losses[rule][run] / none[run], rule, run)
        for rule, rows in by_rule.items()
        for run, value in at_last_step([r for r in rows if r.get("predicted_by") == newest], prediction).items()
        if run in losses[rule] and run in none
    ]


def correlation_within(points: Sequence[Point]) -> Values:
    """Rank correlation of predicted and measured over the rules of one run, by subject; of three rules or more."""
    found: Values = {}
    for run in sorted({p.run for p in points}):
        mine = [p for p in points if p.run == run]
        value = rank_correlation([p.predicted for p in mine], [p.measured for p in mine])
        if len(mine) > 2 and np.isfinite(value):
            found[run] = value
    return over_seeds(found)


def rows_by_rule(rows: Sequence[dict]) -> dict[str, list[dict]]:
    found = {rule: [r for r in rows if r["rule"] == rule] for rule in ALL_RULES}
    return {rule: mine for rule, mine in found.items() if mine}


def by_family(values: Values) -> Values:
    families: dict[tuple, list[float]] = {}
    for (_, subject), value in values.items():
        families.setdefault((subject,), []).append(value)
    return {key: statistics.fmean(v) for key, v in families.items()}


def mean_over_families(values: Values) -> float:
    return statistics.fmean(by_family(values).values())


def mean_over_subjects(values: Values) -> float:
    return statistics.fmean(over_seeds(values).values())


def _by_run(rows: Sequence[dict], pick: Callable[[list[dict]], float | None]) -> Values:
    """A run that has not come to its end is left out: its best may be to come."""
    runs: dict[tuple, list[dict]] = {}
    for r in rows:
        runs.setdefault(_run_of(r), []).append(r)
    finished = {key: run for key, run in runs.items() if any(map(_ends, run))}
    return {key: value for key, run in finished.items() if (value := pick(run)) is not None}


def common_steps(rows: Sequence[dict]) -> set[int]:
    """The steps at which every finished run was measured: who looks more often finds a lower lowest."""
    runs: dict[tuple, list[dict]] = {}
    for r in rows:
        if r["rule"] != "backbone":  # no training: its one row counts at every step
            runs.setdefault((r["rule"], r["variant"], *_run_of(r)), []).append(r)
    finished = [{r["step"] for r in run} for run in runs.values() if any(map(_ends, run))]
    return set.intersection(*finished) if finished else set()


def repeated(rows: Sequence[dict]) -> dict[int, list[float]]:
    """By step how far apart the held-out losses of runs are that were made twice, as a part of the first one's."""
    found: dict[int, list[float]] = {}
    for r in rows:
        if r.get("heldout_again") is not None:
            found.setdefault(r["step"], []).append(abs(r["heldout_again"] / r["heldout_loss"] - 1))
    return found


def _run_of(row: dict) -> tuple[str, str, int]:
    return row["style"], row["subject"], row["seed"]


def _ends(row: dict) -> bool:
    return row["step"] == row["total_steps"] or row["rule"] == "backbone"


def _order(row: dict) -> float:
    """Less is better; where no truth is known the last step counts as the best."""
    return row["heldout_loss"] if row["heldout_loss"] is not None else -row["step"]


def _latest(rows: Sequence[dict], key: Callable[[dict], object]) -> list[dict]:
    """The rows that have the last row's key."""
    return [r for r in rows if key(r) == key(rows[-1])]


def _most(rows: list[dict], key: Callable[[dict], tuple]) -> list[dict]:
    counts: dict[tuple, int] = {}
    for r in rows:
        counts[key(r)] = counts.get(key(r), 0) + 1
    most = max(reversed(counts), key=counts.get, default=None)
    return [r for r in rows if key(r) == most]


def _ranks(values: Sequence[float]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return np.array([(np.sum(values < v) + np.sum(values <= v) - 1) / 2 for v in values])
