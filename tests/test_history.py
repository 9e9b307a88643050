"""Changes by hand: undone one by one from disk, however often the page was opened in between."""

from bat_ui import history
from bat_ui.choice import Candidate, Choice, by_rule, toggle
from bat_ui.project import Project


def test_changes_are_taken_back_in_reverse_order_and_then_there_is_nothing_left(tmp_path):
    rows = tuple(Candidate(f"p{i}", "a", 0.5, rank=i + 1, chosen=i < 2) for i in range(4))
    choices = [Choice("nearest", rows, 2)]
    choices[0].save(Project(tmp_path).choice)
    assert not history.can_undo(Project(tmp_path)) and history.undo(Project(tmp_path)) is None
    for id in ("p0", "p3", "p1"):
        choices.append(toggle(choices[-1], id, tmp_path / "none"))
        history.save_change(Project(tmp_path), *choices[-2:])
        assert Choice.load(Project(tmp_path).choice) == choices[-1]
    for before in reversed(choices[:-1]):
        assert history.can_undo(Project(tmp_path))
        assert history.undo(Project(tmp_path)) == before == Choice.load(Project(tmp_path).choice)
    assert not history.can_undo(Project(tmp_path))


def test_only_so_many_changes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST", 3)
    choice = Choice("nearest", (Candidate("p", "a", 0.5, rank=1, chosen=True),), 1)
    for _ in range(5):
        before, choice = choice, toggle(choice, "p", tmp_path / "none")
        history.save_change(Project(tmp_path), before, choice)
    undone = 0
    while history.undo(Project(tmp_path)):
        undone += 1
    assert undone == 3


def test_a_change_of_rule_is_taken_back_as_a_whole(tmp_path):
    rows = tuple(Candidate(f"p{i}", "a", 0.1 * i, rank=i + 1, chosen=i < 2) for i in range(4))
    first = toggle(Choice("random", rows, 2), "p0", tmp_path / "none")
    history.save_change(Project(tmp_path), first, by_rule(first, "nearest", tmp_path / "none"), whole=True)
    assert history.undo(Project(tmp_path)) == first == Choice.load(Project(tmp_path).choice)
