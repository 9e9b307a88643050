"""What went wrong, in words for the person in front of the screen."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("No space left on device", "database or disk is full", "File too large")  # of libraries that hide the number


class UserError(ValueError):
    """A problem that the person can solve; the text is one sentence that says what to do."""


def in_one_line(problem: BaseException, most: int = 200) -> str:
    """What a library says, for a sentence of ours: the first `most` characters, without line breaks."""
    return " ".join(str(problem).split())[:most]


def explained(problem: BaseException | None) -> str | None:
    """What an exception says to the user in one sentence; None if only a programmer can make sense of it."""
    if isinstance(problem, UserError):
        return str(problem)
    if type(problem).__name__ == "OutOfMemoryError":  # torch's, which takes seconds to import
        return "The graphics card has too little free memory: close what else uses it, or start with --memory 8."
    if getattr(problem, "errno", None) in FULL or any(words in str(problem) for words in FULL_WORDS):
        return "The disk is full: make room, then go on from where it stopped."
    return None
