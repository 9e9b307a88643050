"""The registry: projects are made, named, ordered, copied, deleted and brought back; losing it loses no project."""

import sqlite3
import threading

import pytest

from bat_ui import registry
from bat_ui.errors import UserError
from bat_ui.files import write_json
from bat_ui.project import Project, data_folder, projects_folder


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("BAT_UI_DATA", str(tmp_path))


def ids() -> list[str]:
    return [entry.id for entry in registry.projects()]


def test_a_new_project_stands_first_and_can_be_moved_up():
    first, second, third = (registry.make(name).folder.name for name in ("a", "b", "c"))
    assert ids() == [third, second, first]
    registry.move_up(first)
    assert ids() == [third, first, second]
    registry.move_up(third)
    assert ids() == [third, first, second]


def test_a_name_is_kept_and_without_one_the_subject_gives_it():
    project = registry.make()
    [entry] = registry.projects()
    assert entry.shown_name == "Untitled"
    write_json(project.folder / "draft.json", {"class_noun": "cat"})
    assert registry.projects()[0].shown_name == "cat"
    registry.rename(project.folder.name, "  My \n cat ")
    assert registry.projects()[0].shown_name == "My cat"
    with pytest.raises(UserError, match="shorten"):
        registry.rename(project.folder.name, "x" * 81)


def test_a_deleted_project_is_nowhere_until_it_is_brought_back():
    project = registry.make("cat")
    id = project.folder.name
    registry.delete(id)
    assert ids() == [] and [entry.id for entry in registry.deleted()] == [id]
    with pytest.raises(UserError, match="deleted"):
        registry.find(id)
    registry.restore(id)
    assert ids() == [id] and registry.find(id) == project and registry.deleted() == []


def test_a_damaged_draft_leaves_the_list_of_projects_whole():
    project = registry.make()
    (project.folder / "draft.json").write_text("")
    assert [entry.shown_name for entry in registry.projects() if entry.id == project.folder.name] == ["Untitled"]


def test_only_what_was_deleted_long_ago_is_removed_for_good():
    kept, gone = registry.make("kept"), registry.make("gone")
    registry.delete(gone.folder.name)
    registry.purge()
    assert gone.folder.is_dir()
    registry.purge(older_than=-1)
    assert not gone.folder.exists() and kept.folder.is_dir()
    with pytest.raises(UserError):
        registry.restore(gone.folder.name)


def test_a_duplicate_has_the_same_pictures_and_no_runs():
    project = registry.make("cat")
    write_json(project.subject_marker, {"a": 1})
    write_json(project.choice, {"b": 2})
    project.new_run()
    write_json(project.status_file("select"), {"state": "running"})
    copy = registry.duplicate(project.folder.name)
    assert registry.projects()[0].id == copy.folder.name and registry.projects()[0].shown_name == "cat (copy)"
    assert copy.subject_marker.read_bytes() == project.subject_marker.read_bytes() and copy.choice.is_file()
    assert copy.runs == [] and copy.status("select")["state"] == "absent" and len(project.runs) == 1
    assert not list(projects_folder().glob(".*"))


def test_a_folder_without_a_row_is_taken_in_and_a_row_without_a_folder_is_not_shown():
    folder = projects_folder() / "0123456789abcdef"
    folder.mkdir(parents=True)
    (projects_folder() / "notes").mkdir()
    assert ids() == [folder.name]
    folder.rmdir()
    assert ids() == []


def test_a_damaged_registry_is_put_aside_and_no_project_is_lost():
    id = registry.make("cat").folder.name
    file = data_folder() / "registry.sqlite"
    file.write_bytes(b"no database at all" * 1000)
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink(missing_ok=True)
    registry._mine.connection = None  # as in a server that starts
    assert ids() == [id]
    assert file.with_name("registry.sqlite.damaged").is_file()


def test_many_threads_may_change_it_at_once():
    threads = [threading.Thread(target=registry.make, args=(str(i),)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in registry.projects()) == sorted(str(i) for i in range(20))
    positions = [row["position"] for row in registry.query("SELECT position FROM projects")]
    assert len(set(positions)) == 20


def test_the_first_to_come_waits_for_another_that_is_writing():
    data_folder().mkdir(parents=True, exist_ok=True)
    other = sqlite3.connect(data_folder() / "registry.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.3, other.execute, ["COMMIT"]).start()
    assert [registry.make("cat").folder.name] == ids()
    other.close()


@pytest.mark.parametrize("id", ["", "..", "../../etc", "0123456789ABCDEF", "x" * 16])
def test_nothing_but_an_id_is_ever_a_project(id):
    with pytest.raises(UserError):
        registry.find(id)


def test_runs_are_numbered_and_hold_what_they_are_trained_on():
    project = registry.make()
    with pytest.raises(UserError, match="step 1"):
        project.new_run()
    write_json(project.subject_marker, {"a": 1})
    with pytest.raises(UserError, match="step 2"):
        project.new_run()
    write_json(project.choice, {"b": 2})
    first = project.new_run()
    write_json(project.choice, {"b": 3})
    second = project.new_run()
    assert [run.folder.name for run in project.runs] == ["001", "002"] and project.runs == [first, second]
    assert '"b": 2' in first.choice.read_text() and '"b": 3' in second.choice.read_text()
    assert project.run("002") == second
    for id in ("003", "../001", "1", ".."):
        with pytest.raises(UserError):
            project.run(id)
    assert isinstance(project, Project) and not list((project.folder / "runs").glob(".*"))
