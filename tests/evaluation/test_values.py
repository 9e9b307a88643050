"""The report's values and statistics against closed forms."""

import math

import numpy as np
import pytest

from bat_ui.evaluation.report import METRICS, _every_setting, _every_subject, _metric_differences, _ratio_table
from bat_ui.evaluation.values import (
    at_best_step,
    at_last_step,
    bootstrap_interval,
    correlation_within,
    family_interval,
    lowest_at_first,
    main_rows,
    over_seeds,
    paired,
    predicted_and_measured,
    rank_correlation,
)


def row(subject, seed, step, loss, rule="none", **more):
    base = {"split": "suite", "style": "flat", "subject": subject, "seed": seed, "step": step, "heldout_loss": loss}
    base |= {"rule": rule, "config": "c", "variant": "", "number": 40, "strength": 1.0}
    base |= {"schedule": None, "selection": None, "total_steps": 1}
    return base | more


def test_the_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_bootstrap_interval_of_two_values_is_exact():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert math.isnan(bootstrap_interval([1.0])[0])


def test_the_interval_over_families_is_students_whatever_the_styles():
    # Family means -1 and 3: mean 1, standard error 2, and the 97.5 % quantile of t with one degree of freedom is 12.706.
    values = {("flat", "a"): -2.0, ("outlined", "a"): 0.0, ("flat", "b"): 3.0}
    assert family_interval(values) == pytest.approx((1 - 2 * 12.7062, 1 + 2 * 12.7062), abs=1e-3)
    assert math.isnan(family_interval({("flat", "a"): 1.0, ("outlined", "a"): 2.0})[0])


def test_rank_correlation_sees_order_only_and_shares_ties():
    assert rank_correlation([1, 2, 3], [1, 10, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(rank_correlation([1, 1], [1, 2]))


def test_best_and_last_steps_are_each_runs_own():
    losses = {("a", 0): (0.5, 0.3, 0.9), ("a", 1): (0.2, 0.6, 0.4)}
    rows = [row(*run, i, x, total_steps=3) for run, values in losses.items() for i, x in enumerate(values, start=1)]
    assert over_seeds(at_best_step(rows)) == {("flat", "a"): pytest.approx(0.25)}
    assert over_seeds(at_last_step(rows)) == {("flat", "a"): pytest.approx(0.65)}


def test_a_run_that_is_not_finished_counts_for_nothing():
    rows = [row("a", 0, 1, 0.5), row("a", 0, 2, 0.3), row("b", 0, 1, 0.1)]
    rows = [r | {"total_steps": 2} for r in rows]
    assert at_best_step(rows) == at_last_step(rows) == {("flat", "a", 0): 0.3}
    assert at_last_step(rows[2:]) == {}  # of a rule that has finished nothing its longest run is no end either


def test_a_run_that_is_not_finished_has_no_cell_among_the_subjects():
    rows = [row(*run, total_steps=400) for run in (("a", 0, 25, 0.3), ("a", 0, 400, 0.25), ("b", 0, 25, 0.4))]
    finished, other = _every_subject({"none": rows}).splitlines()[-2:]
    assert "250.0 / 250.0" in finished and other.split("|")[-2].strip() == ""


def test_differences_are_taken_on_the_seeds_that_both_rules_have():
    none = at_last_step([row("a", 0, 1, 0.5), row("a", 1, 1, 9.0), row("b", 0, 1, 0.1)])
    other = at_last_step([row("a", 0, 1, 0.4), row("c", 0, 1, 0.1)])
    assert paired(other, none) == {("flat", "a"): pytest.approx(-0.1)}


def test_the_table_shows_one_setting_a_rule_and_never_the_tuning_subjects():
    rows = [row("a", s, 1, 0.5, number=n) for s, n in ((0, 40), (1, 40), (0, 10))] + [row("t", 0, 1, 0.1, split="tuning")]
    kept = main_rows(rows)
    assert [(r["subject"], r["number"]) for r in kept] == [("a", 40), ("a", 40)]


def test_the_table_shows_the_method_that_was_measured_last_however_few_its_rows():
    before, now = row("a", 0, 1, 0.5) | {"config": "old"}, row("b", 0, 1, 0.4) | {"config": "new"}
    assert main_rows([before, before | {"seed": 1}, now, now | {"variant": "study", "config": "other"}]) == [now]
    sketched = [now | {"rule": "albat", "selection": s, "seed": i} for i, s in enumerate(("first", "first", "second"))]
    ablation = sketched[0] | {"rule": "albat_strict"}
    assert main_rows([ablation, *sketched, now]) == [now, sketched[2]]


def test_runs_in_which_pictures_gained_weight_in_an_earlier_way_are_left_out():
    plain, random = row("a", 0, 1, 0.5), row("a", 0, 1, 0.4, rule="random")
    before, now = random | {"schedule": 1}, random | {"schedule": 2, "seed": 1}
    assert main_rows([plain, before, now]) == [plain, now]
    assert main_rows([plain, before]) == [plain, before]


def test_a_rule_that_was_measured_more_often_has_no_lower_lowest_for_it():
    often = [row("a", 0, step, loss, total_steps=200) for step, loss in ((50, 0.1), (100, 0.3), (200, 0.4))]
    rare = [row("a", 0, step, loss, "albat", total_steps=200) for step, loss in ((100, 0.3), (200, 0.2))]
    unfinished = row("a", 1, 100, 0.3, "albat", total_steps=200)
    plain = row("a", 0, 0, 0.9, "backbone", total_steps=200)
    assert main_rows([*often, *rare, unfinished, plain]) == [plain, *often[1:], *rare]


def test_runs_of_another_length_are_left_out():
    long, short = row("a", 0, 1, 0.5), row("a", 0, 2, 0.4, total_steps=2)
    assert main_rows([long, short]) == [short] and main_rows([short, long]) == [long]


def test_it_is_told_which_runs_were_lowest_at_their_first_step():
    rows = [
        row(*run, total_steps=200)
        for run in (
            ("a", 0, 100, 0.1),
            ("a", 0, 200, 0.2),
            ("b", 0, 100, 0.3),
            ("b", 0, 200, 0.2),
            ("c", 0, 100, 0.1),
        )
    ]
    assert lowest_at_first(rows) == {("flat", "a", 0): 1.0, ("flat", "b", 0): 0.0}


def test_predictions_are_compared_over_the_rules_of_one_run():
    measured = {"none": (1.0, 2.0), "a": (0.5, 1.0), "b": (0.8, 1.2), "c": (0.9, 1.8)}  # predicted, loss
    by_rule = {rule: [row("x", 0, 1, loss, rule, rho=rho)] for rule, (rho, loss) in measured.items()}
    by_rule["a"] += [row("y", 0, 1, 0.3, "a", rho=0.1)]  # a run without `none` has nothing to be compared with
    points = predicted_and_measured(by_rule, "rho")
    assert {p.rule: (p.predicted, p.measured) for p in points} == {
        "none": (1.0, 1.0), "a": (0.5, 0.5), "b": (0.8, pytest.approx(0.6)), "c": (0.9, pytest.approx(0.9)),
    }  # fmt: skip
    assert correlation_within(points) == {("flat", "x"): pytest.approx(1)}
    assert correlation_within(points[:2]) == {}


def test_predictions_of_an_earlier_method_are_not_shown_beside_the_newest():
    none = row("x", 0, 1, 2.0, rho=1.0, predicted_by="old")
    albat = row("x", 0, 1, 1.0, "albat", rho=0.5, predicted_by="new", selection="new")
    random = row("x", 0, 1, 1.5, "random", rho=0.1, predicted_by="old")
    points = predicted_and_measured({"none": [none], "albat": [albat], "random": [random]}, "rho")
    assert [(p.rule, p.predicted, p.measured) for p in points] == [("albat", 0.5, 0.5)]


def test_ratios_are_geometric_means_over_families_of_the_runs_that_both_have():
    none = [row("a", 0, 1, 1.0), row("b", 0, 1, 0.2), row("c", 0, 1, 9.0)]
    albat = [row("a", 0, 1, 0.5, "albat"), row("b", 0, 1, 0.4, "albat")]
    shown = _ratio_table({"none": none, "albat": albat}).splitlines()[4]
    assert shown.startswith("| none | 1.000 [") and "| 1 of 2 |" in shown and shown.endswith("| 2 |")


def test_drawn_pictures_are_compared_on_the_runs_that_both_rules_have():
    def drawn(subject, rule, value):
        return row(subject, 0, 1, 1.0, rule, **dict.fromkeys(METRICS, value))

    none = [drawn("cats", "none", 0.2), drawn("suns", "none", 0.4), drawn("clocks", "none", 9.0)]
    albat = [drawn("cats", "albat", 0.5), drawn("suns", "albat", 0.5), drawn("clocks", "albat", None)]
    table = _metric_differences({"none": none, "backbone": none, "albat": albat})
    assert table.count("+0.20 [-1.07, +1.47]") == len(METRICS) - 1 and "+200.00" in table  # t of one degree of freedom: 12.7
    assert "| albat | 2 |" in table and "backbone" not in table
    assert _metric_differences({"none": none, "albat": albat[2:]}) == ""


def test_in_the_table_of_all_settings_none_is_not_looked_at_more_often_than_what_is_beside_it():
    none = [row("a", 0, step, loss, total_steps=200, number=None, strength=None) for step, loss in ((50, 0.1), (200, 0.5))]
    rare = [row("a", 0, 200, 0.4, "random", total_steps=200, num=40, schedule=4) | {"lambda": 2.0}]
    shorter = [row("a", 0, 100, 0.2, total_steps=100, number=None, strength=None)]
    lines = _every_setting([r | {"num": r.get("num", 0)} for r in (*none, *rare, *shorter)]).splitlines()
    [random] = [line for line in lines if "| random |" in line]
    assert random.endswith("| 2 | 1 | 400.00 | 400.00 | -100.00 | -100.00 |")
    assert [line.split(" | ")[2] for line in lines if "| none |" in line] == ["100", "200"]
