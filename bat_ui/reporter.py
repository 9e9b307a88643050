"""What a verb of the command line tells while it works: bars on stderr, and the status file that the page reads.

In: calls of `Progress`.  Out: bars, status, and whether somebody asked the verb to stop.
"""

from __future__ import annotations

import signal
from contextlib import suppress

from tqdm import tqdm

from bat_ui.errors import UserError, explained
from bat_ui.processes import job_process
from bat_ui.project import Project, StatusWriter


class PictureBar:
    """A Progress that draws one bar on stderr, of pictures whose number is an estimate."""

    said = ""

    def __enter__(self) -> PictureBar:
        self.bar = tqdm(unit="picture", mininterval=1)
        return self

    def __exit__(self, *problem) -> None:
        self.bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what == "Ingesting":
            self.bar.total = total or None
            self.bar.update(done - self.bar.n)
        self.bar.set_description(what)


class Stopped(Exception):
    """A verb was asked to stop that has nothing to save."""


class Reporter:
    """A Progress that draws bars on stderr and keeps the verb's status file; SIGTERM or Ctrl-C asks the verb to stop.

    Training saves what it has and ends by itself; the other verbs are left at their next sign of progress.
    """

    def __init__(self, project: Project, verb: str):
        """Raises UserError while another process does the same here: the two would write over each other's files."""
        status = project.status(verb)
        if status["state"] == "running" and status.get("pid") != job_process():
            raise UserError(f"Another process (number {status['pid']}) is doing this here already: wait for it or stop it.")
        self.project, self.verb = project, verb
        self.status = StatusWriter(project, verb)
        self.what, self.bar = "", None
        self.asked = False
        self.finished = True
        self.said = ""  # about a good end

    def __enter__(self) -> Reporter:
        self._previous = {signum: signal.signal(signum, self._ask) for signum in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind, problem, trace) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self.bar is not None:
            self.bar.close()
        if kind is None:
            self.status.finish("done" if self.finished else "stopped", self.said)
        elif issubclass(kind, (Stopped, KeyboardInterrupt)):
            self.status.finish("stopped")
        else:
            said = explained(problem) or f"Something unexpected went wrong ({kind.__name__}): see the log."
            with suppress(OSError):  # on a full disk not even this finds room; the page then sees that the process is gone
                self.status.finish("failed", said)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.status(what, done, total)
        if what != self.what:
            if self.bar is not None:
                self.bar.close()
            self.what, self.bar = what, tqdm(total=total, desc=what, initial=done)
        self.bar.update(done - self.bar.n)
        if self.verb != "train" and self.stop_asked():
            raise Stopped

    def stop_asked(self) -> bool:
        """True once the process got SIGTERM or the page left a stop file."""
        return self.asked or self.project.stop_file(self.verb).exists()

    def _ask(self, signum: int, frame: object) -> None:
        if self.asked and signum == signal.SIGINT:  # pressed again: somebody does not want to wait
            raise KeyboardInterrupt
        self.asked = True
