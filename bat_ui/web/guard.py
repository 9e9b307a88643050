"""Stands before Gradio and refuses what the page never asks for; beside it Gradio's own checks stay as they are.

In: requests to the server.  Out: the same to Gradio, or a refusal in a sentence: other sites' requests, bodies that are too
large, files that the page does not show, addresses that the server is to fetch.  Left out on purpose: who may come in, which
is Gradio's login; pixels, which are pictures.py's.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bat_ui.pictures import SUFFIXES
from bat_ui.project import is_project_id, projects_folder

MAX_UPLOAD = 500_000_000  # bytes of one request that brings files
MAX_FILES = 100  # in one request; how many a subject may have is said by the page itself
MAX_REQUEST = 4_000_000  # bytes of any other request
PICTURES = ("subject", "originals", "previews", "candidates", "samples")  # folders whose pictures the page shows
TO_TAKE_HOME = {"exports": (), "lora": (".safetensors",)}  # folders and what they may give, () for anything
LOGIN_SECONDS = 0.5  # between two tries of a password, by whomever

# Nothing that the page could be made to hold reaches another host, and no other site can lay itself over the page.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"


class Guard:
    """ASGI middleware; `local` also refuses every name of the server but this machine's own, which is what stops a site
    whose name was made to point here."""

    def __init__(self, app: ASGIApp, local: bool):
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            try:
                receive = await _limited(headers, receive)
            except Refused as problem:
                refusal = problem.answer
        if refusal is not None:
            return await refusal(scope, receive, send)
        await self.app(scope, receive, _with_policy(send))

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        if self.local and not is_loopback(_host_name(headers.get("host", ""))):
            return PlainTextResponse(
                "This page answers to localhost only: start it with --auth to reach it by another name.", 403
            )
        follows_a_link = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate" and scope["path"] == "/"
        if not follows_a_link and not _same_site(headers):
            return PlainTextResponse("Another site may not use this page.", 403)
        wanted = re.search(r"/gradio_api/(file[=/]|proxy=)(.*)", scope["path"], re.DOTALL)
        if wanted and (wanted[1] == "proxy=" or not is_served(wanted[2])):
            return PlainTextResponse("Only pictures and results of projects are served.", 403)
        return None


class Refused(Exception):
    """A request's body that is not taken in."""

    def __init__(self, sentence: str, code: int):
        self.answer = PlainTextResponse(sentence, code)


def is_loopback(host: str) -> bool:
    """True for a name or number that can only mean this machine."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_served(path: str) -> bool:
    """True for a picture or a result in a project's folder, and for what Gradio itself keeps copies of; links are followed
    first.  Logs, settings, statuses, sketches, checkpoints and the registry are none of these."""
    from gradio.utils import get_upload_folder

    try:
        file = Path(path).resolve()
        if file.is_relative_to(Path(get_upload_folder()).resolve()):
            return True
        project, *folders = file.relative_to(projects_folder().resolve()).parent.parts
    except (ValueError, OSError, RuntimeError):  # no path at all, not in the folder, in no project, a loop of links
        return False
    if not is_project_id(project) or any(part.startswith(".") for part in (*folders, file.name)):
        return False
    if any(folder in PICTURES for folder in folders) and file.suffix in SUFFIXES:
        return True
    return any(folder in folders and (not kinds or file.suffix in kinds) for folder, kinds in TO_TAKE_HOME.items())


def password_check(user: str, password: str) -> Callable:
    """What Gradio asks whether somebody may come in; tries wait for one another, so that guessing is slow."""
    one_by_one = asyncio.Lock()

    async def may_come_in(given_user: str, given_password: str) -> bool:
        async with one_by_one:
            await asyncio.sleep(LOGIN_SECONDS)
        known = secrets.compare_digest(given_user.encode(), user.encode())
        return secrets.compare_digest(given_password.encode(), password.encode()) and known

    return may_come_in


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_site(headers: Headers) -> bool:
    """False for what a browser sends on behalf of another site; programs that are no browsers say neither."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host", "")


async def _limited(headers: Headers, receive: Receive) -> Receive:
    """`receive` for a body that is within the limits.  Raises Refused for one that is not, as early as that is known."""
    kind = headers.get("content-type", "")
    brings_files = kind.startswith("multipart/form-data")
    most = MAX_UPLOAD if brings_files else MAX_REQUEST
    try:
        announced = int(headers.get("content-length", "0"))
    except ValueError:
        announced = 0
    if announced > most:
        raise Refused(f"That is larger than {most // 1_000_000} MB: send fewer or smaller files.", 413)
    if brings_files:
        return _counted(kind, receive)
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return _replayed([message], receive)
        body += message.get("body", b"")
        if len(body) > most:
            raise Refused(f"That is larger than {most // 1_000_000} MB: send less at once.", 413)
        if not message.get("more_body"):
            break
    if _names_an_address(body):
        raise Refused("Files are taken from uploads only, no address is fetched: upload the file first.", 400)
    return _replayed([{"type": "http.request", "body": body, "more_body": False}], receive)


def _counted(kind: str, receive: Receive) -> Receive:
    """Files as they stream in; Gradio's parser turns the exception into an answer and deletes what it had stored."""
    found = re.search(r'boundary="?([^";,]+)', kind)
    mark = b"--" + found[1].encode("latin-1") if found else b"--"
    size, parts, end = 0, 0, b""

    async def counted() -> Message:
        nonlocal size, parts, end
        message = await receive()
        body = message.get("body", b"")
        size += len(body)
        text = end + body
        parts += text.count(mark)
        end = text[-len(mark) + 1 :]  # too short to hold a mark that was counted
        if size > MAX_UPLOAD:
            raise MultiPartException(f"The files exceed the maximum allowed size of {MAX_UPLOAD // 1_000_000} MB together.")
        if parts > MAX_FILES + 1:  # one more stands at the end
            raise MultiPartException(f"Too many files: send at most {MAX_FILES} at once.")
        return message

    return counted


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    async def replayed() -> Message:
        return messages.pop(0) if messages else await receive()

    return replayed


def _names_an_address(body: bytes) -> bool:
    """True for JSON in which a file is an address, which Gradio would fetch."""
    if b'"path"' not in body and b"\\u" not in body:  # most requests; a name can only be hidden by escapes
        return False
    try:
        return _has_address(json.loads(body))
    except (ValueError, RecursionError):  # Gradio refuses it, too
        return False


def _has_address(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        is_address = isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]+:", path, re.IGNORECASE)  # not C:\
        return bool(is_address) or any(map(_has_address, value.values()))
    return isinstance(value, list) and any(map(_has_address, value))


def _with_policy(send: Send) -> Send:
    async def with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = POLICY
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"
        await send(message)

    return with_policy
