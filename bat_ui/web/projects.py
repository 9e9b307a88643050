"""The sidebar: the projects on disk, what becomes of the open one, and the queue of all of them.

In: the registry and the queue.  Out: another open project; names, copies, deletions that can be taken back; jobs that are
stopped.  The same as endpoints, so that a program can do it all.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import gradio as gr

from bat_ui import queue, registry
from bat_ui.project import Project
from bat_ui.web.parts import Updates, address, answering, hint, html, message_box, once_a_second, refusing, required
from bat_ui.web.step import Shared, Step
from bat_ui.web.words import VERBS, state_words

NO_PROJECT = "No project is open: choose one from the list or make a new one."

# One listener for the list: a plain click opens a project or stops a job without loading the page anew.
TELL_WHICH = """element.addEventListener('click', (event) => {
    const entry = event.target.closest('[data-project], [data-job]');
    if (!entry || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    trigger('click', {project: entry.dataset.project || '', job: entry.dataset.job || ''});
});"""


@dataclass(frozen=True)
class Sidebar(Step):
    """A step whose `reopening` events may leave another project open than before; `panel` is what can be folded away."""

    panel: gr.Sidebar
    reopening: tuple


def build_sidebar(shared: Shared) -> Sidebar:
    """Lay out the sidebar and wire its events."""
    id = shared.project
    with gr.Sidebar(label="Projects", open=False, width=290, elem_id="sidebar") as sidebar:
        html("<h2>Projects</h2>")
        fresh = gr.Button("New project", elem_id="new-project", size="sm")
        projects = gr.HTML("", js_on_load=TELL_WHICH, apply_default_css=False, elem_id="projects")
        message = message_box("projects-message")
        with gr.Column(visible=False, elem_id="project-tools") as tools:
            name = gr.Textbox(
                "", label="Name of the open project", placeholder="called after its subject", max_lines=1,
                elem_id="project-name", submit_btn="Rename",
            )  # fmt: skip
            with gr.Row():
                copy = gr.Button("Duplicate", elem_id="duplicate-project", size="sm", min_width=60)
                up = gr.Button("Move up", elem_id="move-project", size="sm", min_width=60)
                remove = gr.Button("Delete", elem_id="delete-project", size="sm", min_width=60)
        back = gr.Button("", visible=False, elem_id="restore-project", size="sm")
        html("<h2>Queue</h2>")
        jobs = gr.HTML("", js_on_load=TELL_WHICH, apply_default_css=False, elem_id="queue")
    own = [projects, tools, back, jobs]

    moving = [projects, jobs]

    def texts(id: str) -> list[str]:
        """What changes with every step of a job."""
        entries = registry.projects()
        return [_list(entries, id), _queue(queue.active(), {entry.id: entry.shown_name for entry in entries})]

    def standing(id: str) -> Updates:
        gone = registry.deleted()
        return {
            tools: gr.update(visible=any(entry.id == id for entry in registry.projects())),
            back: gr.update(visible=bool(gone), value=f"Bring back “{gone[0].shown_name}”" if gone else ""),
        }

    def follow(id: str) -> Updates:
        return {**dict(zip(moving, texts(id))), **standing(id)}

    def show(project: Project | None) -> Updates:
        id = project.folder.name if project else ""
        return {**follow(id), name: _name(id)}

    def start_anew() -> Updates:
        return {id: ""}

    def choose(project_id: str, event: gr.EventData) -> Updates:
        if event.job:
            queue.stop(queue.find(int(event.job)))
            return follow(project_id)
        registry.find(event.project)
        return {id: event.project}

    def give_name(project_id: str, text: str) -> Updates:
        required(project_id, NO_PROJECT)
        registry.rename(project_id, text)
        return {**follow(project_id), name: _name(project_id)}

    def make_copy(project_id: str) -> Updates:
        required(project_id, NO_PROJECT)
        return {id: registry.duplicate(project_id).folder.name}

    def move(project_id: str) -> Updates:
        registry.move_up(project_id)
        return follow(project_id)

    def take_away(project_id: str) -> Updates:
        required(project_id, NO_PROJECT)
        _delete(project_id)
        return {id: ""}

    def bring_back() -> Updates:
        gone = registry.deleted()
        if not gone:
            return {}
        registry.restore(gone[0].id)
        return {id: gone[0].id}

    private = {"api_visibility": "private", "show_progress": "hidden"}
    shared.heartbeat.mirror(texts, [id], moving)
    shared.heartbeat.follow(_seen, [id], standing, [id], [tools, back])
    reopening = (
        fresh.click(answering(message, start_anew), None, [message, id], **private),
        projects.click(answering(message, choose), id, [message, id, *own], **private),
        copy.click(answering(message, make_copy), id, [message, id], **private),
        remove.click(answering(message, take_away), id, [message, id], **private),
        back.click(answering(message, bring_back), None, [message, id], **private),
    )
    jobs.click(answering(message, choose), id, [message, id, *own], **private)
    name.submit(answering(message, give_name), [id, name], [message, name, *own], **private)
    up.click(answering(message, move), id, [message, *own], **private)
    for endpoint in ENDPOINTS:
        gr.api(endpoint, api_name=endpoint.__name__)
    return Sidebar(show, [name, *own], sidebar, reopening)


def list_projects() -> list[dict]:
    """All projects in order: id, name and what they are at."""
    jobs = queue.active()
    return [{"id": e.id, "name": e.shown_name, "state": state_words(e.project, jobs)} for e in registry.projects()]


def project_status(project: str) -> dict:
    """How a project stands: name, what it is at, how its search for pictures stands, its runs' ids."""
    with refusing():
        found = registry.find(project)
    status = queue.status(found, "select")
    return {
        "name": _name(project),
        "state": state_words(found, queue.active()),
        "search": status["state"],
        "message": status.get("message", ""),
        "place_in_queue": status.get("place"),
        "runs": [run.folder.name for run in found.runs],
    }


def make_project(name: str = "") -> str:
    """Make an empty project; returns its id."""
    with refusing():
        return registry.make(name).folder.name


def rename_project(project: str, name: str) -> str:
    """Give a project another name; returns the name that is shown."""
    with refusing():
        registry.rename(project, name)
    return _name(project)


def move_project_up(project: str) -> list[str]:
    """Change places with the project above; returns all ids in order."""
    with refusing():
        registry.find(project)
    registry.move_up(project)
    return [entry.id for entry in registry.projects()]


def duplicate_project(project: str) -> str:
    """Copy a project with its pictures and choices, without its runs; returns the copy's id."""
    with refusing():
        return registry.duplicate(project).folder.name


def delete_project(project: str) -> str:
    """Stop what it is at and take a project off the list; `restore_project` brings it back within a week."""
    with refusing():
        _delete(project)
    return project


def restore_project(project: str) -> str:
    """Bring a deleted project back."""
    with refusing():
        registry.restore(project)
    return project


def list_jobs() -> list[dict]:
    """What runs and what waits, in order."""
    return [_job_facts(job) for job in queue.active()]


def stop_job(job: int, now: bool = False) -> dict:
    """Take a waiting job out of the queue, or stop a running one: saving what it can, or at once if `now`."""
    with refusing():
        queue.stop(queue.find(job), now)
        return _job_facts(queue.find(job))


ENDPOINTS = (
    list_projects,
    project_status,
    make_project,
    rename_project,
    move_project_up,
    duplicate_project,
    delete_project,
    restore_project,
    list_jobs,
    stop_job,
)


def _delete(id: str) -> None:
    registry.delete(id)
    queue.stop_project(id)


def _name(id: str) -> str:
    return next((entry.shown_name for entry in registry.projects() if entry.id == id), "")


def _job_facts(job: queue.Job) -> dict:
    facts = {"job": job.id, "project": job.project, "run": job.run, "verb": job.verb, "state": job.state}
    return facts | {"place": queue.status(job.place, job.verb).get("place")}


def _seen(id: str) -> str:
    """A word that changes when projects come or go."""
    return f"{id} {hash(_there())}"


@once_a_second
def _there() -> tuple:
    deleted = registry.deleted()
    return (*(entry.id for entry in registry.projects()), "", *((entry.id, entry.shown_name) for entry in deleted))


def _list(entries: list[registry.Entry], open_id: str) -> str:
    if not entries:
        return hint("Your projects will be listed here.")
    jobs = queue.active()
    listed = "".join(_entry(entry, jobs, entry.id == open_id) for entry in entries)
    return f'<nav aria-label="Projects"><ul>{listed}</ul></nav>'


def _entry(entry: registry.Entry, jobs: list[queue.Job], is_open: bool) -> str:
    picture = _picture(entry.project)
    face = f'<img src="{escape(picture)}" alt="" width="40" height="40">' if picture else '<span class="blank"></span>'
    current = ' aria-current="page"' if is_open else ""
    return (
        f'<li><a href="?project={entry.id}" data-project="{entry.id}"{current}>{face}'
        f"<span><b>{escape(entry.shown_name)}</b><small>{escape(state_words(entry.project, jobs))}</small></span></a></li>"
    )


def _picture(project: Project) -> str:
    """Where the browser finds a small picture of the project; empty if there is none."""
    folders = (project.subject, project.folder / "originals")
    found = next((file for folder in folders for file in sorted(folder.glob("*.png"))), None)
    return address(found) if found else ""


def _queue(jobs: list[queue.Job], names: dict[str, str]) -> str:
    if not jobs:
        return hint("Nothing runs and nothing waits.")
    return f"<ol>{''.join(_job(job, names.get(job.project, 'a deleted project')) for job in jobs)}</ol>"


def _job(job: queue.Job, name: str) -> str:
    status = queue.status(job.place, job.verb)
    run = f", run {int(job.run)}" if job.run else ""
    if status["state"] == "waiting":
        words, button = f"waits, place {status['place']}", "Take out"
    else:
        words, button = f"{status['what'].lower()} {_part(status)}".strip(), "Stop"
    quiet = " disabled" if status.get("stopping") else ""
    doing = VERBS[job.verb].capitalize()
    label = f"{button}: {doing}, {name}{run}"
    return (
        f"<li><span><b>{doing}</b> {escape(name)}{run}<small>{escape(words)}</small></span>"
        f'<button type="button" data-job="{job.id}" aria-label="{escape(label)}"{quiet}>{button}</button></li>'
    )


def _part(status: dict) -> str:
    return f"{status['done'] / status['total']:.0%}" if status.get("total", 0) > 1 else ""
