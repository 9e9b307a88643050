"""50 browsers that look at one running training: how long the page takes to answer, and what that costs the training.

    python benchmarks/browsers.py [--quick] [--browsers 50] [--seconds 90]

A server of its own trains; its pace is taken while nobody looks and while everybody does, turn about.  All browsers
but one are sessions that ask what a page asks (its load event, then its heartbeat as often as the server wants, and what
that says has changed); the last one is Chromium.  In life they are other people's machines: here they run at idle priority,
so that they slow the training by what they ask of the server and as little as may be by what they are themselves.
Writes docs/benchmarks/browsers.md and .json; --quick takes a tiny backbone and a few browsers and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import record
from gradio_client import Client
from httpx import AsyncClient, Limits, ReadError, RemoteProtocolError
from playwright.async_api import async_playwright
from serving import server, tiny_backbone, wait_for

ROUNDS, REST = 3, 3.0  # nobody looks, then everybody; seconds before each, in which the last ones' answers come
CONNECTIONS = 4  # of a session
TAB = "step-3"  # that a page opens at while a training runs; what is in other tabs is drawn when they are opened
LATENCY, SPEED = 1.0, 0.9  # seconds at the 95th percentile, and the part of its pace that the training must keep
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Watched:
    """Steps a second while nobody and while everybody looks, block by block; seconds of answers, of openings; cores used."""

    alone: list[float] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    chromium: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)
    cores: list[dict[str, float]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--browsers", type=int)
    parser.add_argument("--seconds", type=float, help="that everybody looks, and that nobody does")
    args = parser.parse_args()
    browsers, seconds = args.browsers or (3 if args.quick else 50), args.seconds or (18 if args.quick else 90)
    with tempfile.TemporaryDirectory() as folder:
        backbone = str(tiny_backbone(Path(folder) / "backbone")) if args.quick else "sticker"
        with server(Path(folder), "--backbone", backbone) as address:
            measured = measure(address, args.quick, browsers, seconds)
    report(args.quick, browsers, seconds, measured)


def measure(address: str, quick: bool, browsers: int, seconds: float) -> Watched:
    client = Client(address, verbose=False)
    project = begin_training(client, quick)
    stand_back()
    try:
        time.sleep(seconds / 4)  # the first steps are slower
        return asyncio.run(watch(client, address, project, browsers, seconds))
    finally:
        client.predict(project, "001", api_name="/stop_training_now")


def begin_training(client: Client, quick: bool) -> str:
    """An example's training that has begun, without pictures at checkpoints; returns the project's id."""
    project = client.predict("flat-cat", api_name="/use_example")
    client.predict(project, "cat", api_name="/use_pictures")
    client.predict(project, rule="none" if quick else "random", api_name="/find_pictures")
    wait_for(lambda: client.predict(project, api_name="/project_status")["search"] == "done")
    settings = {"steps": 2000, "checkpoint_every": 100, "validation_images": 0, "batch_size": 8 if quick else 16}
    settings["subject_steps"] = 1  # all steps alike, from the second on
    client.predict(project, **settings, api_name="/train")
    wait_for(lambda: client.predict(project, "001", api_name="/run_status")["step"] > 0)
    return project


def step_of(client: Client, project: str) -> tuple[int, float]:
    found = client.predict(project, "001", api_name="/run_status")
    if found["state"] != "running":
        raise RuntimeError(f"the training is {found['state']}: fewer seconds, or a slower backbone")
    return found["step"], time.monotonic()


def stand_back() -> None:
    """Leave the processors to the server and the training, from now on and for whatever this process starts."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


async def watch(client: Client, address: str, project: str, browsers: int, seconds: float) -> Watched:
    """Everybody opens the page; then nobody and everybody looks, turn about, `seconds` of each in all."""
    found = Watched()
    sessions = [Session(address, project) for _ in range(browsers - 1)]
    found.opened += await asyncio.gather(*(session.open() for session in sessions))
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = await chromium.new_page()
        for _ in range(ROUNDS):
            await page.goto("about:blank")
            await asyncio.sleep(REST)
            first, began = await asyncio.to_thread(step_of, client, project)
            await asyncio.sleep(seconds / ROUNDS)
            last, ended = await asyncio.to_thread(step_of, client, project)
            found.alone.append((last - first) / (ended - began))

            opened = time.monotonic()
            await page.goto(f"{address}/?project={project}")
            await page.locator("#training-panel progress").wait_for(timeout=120_000)
            found.opened.append(time.monotonic() - opened)
            await asyncio.sleep(REST)
            await page.evaluate("performance.setResourceTimingBufferSize(100000); performance.clearResourceTimings()")
            first, began = await asyncio.to_thread(step_of, client, project)
            until, spent = time.monotonic() + seconds / ROUNDS, processor_seconds()
            await asyncio.gather(*(session.look(until) for session in sessions), asyncio.sleep(seconds / ROUNDS))
            last, ended = await asyncio.to_thread(step_of, client, project)
            found.watched.append((last - first) / (ended - began))
            found.cores.append({k: (used - spent[k]) / (ended - began) for k, used in processor_seconds().items()})
            asked = "performance.getEntriesByType('resource').filter(r => /heartbeat|\\/run\\//.test(r.name))"
            found.chromium += await page.evaluate(f"{asked}.map(r => r.duration / 1000)")
        await chromium.close()
    found.answers += [answer for session in sessions for answer in session.answers]
    for session in sessions:
        await session.http.aclose()
    return found


def processor_seconds() -> dict[str, float]:
    """What the server, its training and the browsers (with Chromium) have had of the processors so far."""
    own = psutil.Process()
    below = own.children(recursive=True)
    page = next(p for p in own.children() if "app.py" in p.cmdline())
    jobs = {p.pid for p in page.children(recursive=True)}
    found = {"server": 0.0, "training": 0.0, "browsers": 0.0}
    for process in (own, *below):
        part = "server" if process == page else "training" if process.pid in jobs else "browsers"
        with suppress(psutil.NoSuchProcess):
            found[part] += sum(process.cpu_times()[:2])
    return found


class Session:
    """A browser without a window: it loads the page, hears its first event, and then follows the heartbeat."""

    def __init__(self, address: str, project: str):
        self.project, self.hash, self.answers = project, secrets.token_hex(8), []
        self.wait = 1.0  # seconds between two looks, as the server said last
        # A connection is given up before the server does so after 5 seconds: a browser would ask again, httpx does not.
        limits = Limits(max_connections=CONNECTIONS, keepalive_expiry=3)
        self.http = AsyncClient(base_url=address, timeout=120, limits=limits, verify=False)
        self.values: dict[int, object] = {}

    async def open(self) -> float:
        """Seconds until the page and its first contents are there."""
        began = time.monotonic()
        (await self.http.get(f"/?project={self.project}")).raise_for_status()
        config = (await self.http.get("/config")).json()
        project = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "project")
        self.values = {c["id"]: c["props"].get("value") for c in config["components"]} | {project: self.project}
        events = config["dependencies"]
        beat = next(e for e in events if any(kind == "tick" for _, kind in e["targets"]))
        self.about = beat["inputs"][: -len(beat["outputs"])]
        followed = {target: e for e in events for target, kind in e["targets"] if kind == "change"}
        self.boxes = [box for box in beat["outputs"] if box in followed]  # the others get their texts with the beat
        self.followers = [followed[box] for box in self.boxes]
        tabs = ast.literal_eval(re.search(r"own = (\[.*?\]);", beat["js"])[1])
        self.has = ["" if tab in ("", TAB) else None for tab in tabs]
        other = {c["id"] for c in config["components"] if c["type"] == "tabitem" and c["props"]["elem_id"] != TAB}
        self.hidden = {part["id"] for tab in parts(config["layout"]) if tab["id"] in other for part in parts(tab)}
        first = next(e for e in events if any(kind == "load" for _, kind in e["targets"]) and project in e["outputs"])
        asked = {"data": [self.project], "fn_index": first["id"], "session_hash": self.hash}
        (await self.http.post("/gradio_api/queue/join", json=asked)).raise_for_status()
        async with self.http.stream("GET", f"/gradio_api/queue/data?session_hash={self.hash}") as stream:
            async for line in stream.aiter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"the page could not be opened: {message['output']}")
                    self._take(first, message["output"])
                    break
        return time.monotonic() - began

    async def look(self, until: float) -> None:
        await asyncio.sleep(self.wait * secrets.randbelow(1000) / 1000)  # not all at the same moment
        while time.monotonic() < until:
            about = json.dumps([None if value is None else str(value) for value in map(self.values.get, self.about)])
            asked = {"page": self.hash, "about": about, "has": json.dumps(self.has)}
            beat = await self._answer("GET", "/heartbeat", params=asked)
            self.wait = beat["wait"]
            self.has = [text["mark"] if text else mark for text, mark in zip(beat["texts"], self.has)]
            next_beat = time.monotonic() + self.wait
            for box, word, follower in zip(self.boxes, beat["words"], self.followers):
                if word != self.values.get(box) and box not in self.hidden:
                    self.values[box] = word
                    data = [self.values.get(component) for component in follower["inputs"]]
                    asked = {"data": data, "fn_index": follower["id"], "session_hash": self.hash}
                    self._take(follower, await self._answer("POST", "/gradio_api/run/predict", json=asked))
            await asyncio.sleep(max(0.0, next_beat - time.monotonic()))

    async def _answer(self, method: str, path: str, **asked) -> dict:
        began = time.monotonic()
        for _ in range(CONNECTIONS + 1):  # any of them may have been closed by the server: browsers, too, ask again
            with suppress(ReadError, RemoteProtocolError):
                answer = await self.http.request(method, path, **asked)
                break
        answer.raise_for_status()
        self.answers.append(time.monotonic() - began)
        return answer.json()

    def _take(self, event: dict, output: dict) -> None:
        """Keep the values that the page would show, to send them with the next tick."""
        for component, value in zip(event["outputs"], output["data"]):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" in value:
                    self.values[component] = value["value"]
            else:
                self.values[component] = value


def parts(layout: dict) -> Iterator[dict]:
    """A part of a page's layout and all that is in it."""
    yield layout
    for child in layout.get("children") or ():
        yield from parts(child)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def report(quick: bool, browsers: int, seconds: float, found: Watched) -> None:
    everything = [*found.answers, *found.chromium]
    kept = statistics.fmean(found.watched) / statistics.fmean(found.alone)
    headline = {
        "latency_p95_seconds": round(percentile(everything, 0.95), 3),
        "training_speed_kept": round(kept, 3),
    }
    cores = {name: round(statistics.fmean(each[name] for each in found.cores), 3) for name in found.cores[0]}
    figures = {
        "browsers": browsers,
        "seconds": seconds,
        "answers": len(everything),
        "latency_p50_p95_p99_max": [round(percentile(everything, part), 4) for part in (0.5, 0.95, 0.99, 1.0)],
        "chromium_p95": round(percentile(found.chromium, 0.95), 4),
        "opening_p50_max": [round(percentile(found.opened, part), 3) for part in (0.5, 1.0)],
        "steps_a_second_alone": [round(value, 3) for value in found.alone],
        "steps_a_second_watched": [round(value, 3) for value in found.watched],
        "cores": cores,
        **headline,
    }
    if quick:
        for key, value in figures.items():
            print(key, value)
        return
    middle, slowest = figures["opening_p50_max"]
    p50, p95, p99, most = figures["latency_p50_p95_p99_max"]
    text = f"""# {browsers} browsers that look at one training

| | measured | wanted |
| --- | --- | --- |
| the page's answer, 95th percentile | {p95:.2f} s | under {LATENCY:.0f} s |
| the training's pace, of its pace alone | {headline["training_speed_kept"]:.2f} | at least {SPEED} |

{len(everything):,} answers in {seconds:.0f} s: half within {p50:.2f} s, 99% within {p99:.2f} s, the slowest {most:.2f} s;
those to Chromium 95% within {figures["chromium_p95"]:.2f} s. Opening the page, all {browsers} at once: half within
{middle:.1f} s, the slowest {slowest:.1f} s. Steps a second in turn: {_in_words(found.alone)} while nobody looked and
{_in_words(found.watched)} while everybody did. All share the machine, the browsers at idle priority: of its cores
they had {cores["browsers"]:.2f}, the server {cores["server"]:.2f} and the training {cores["training"]:.2f}.
"""
    record.write("browsers", figures, text, headline)
    if headline["latency_p95_seconds"] >= LATENCY or headline["training_speed_kept"] < SPEED:
        sys.exit(1)


def _in_words(paces: list[float]) -> str:
    return ", ".join(f"{pace:.2f}" for pace in paces)


if __name__ == "__main__":
    main()
