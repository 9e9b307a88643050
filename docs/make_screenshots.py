"""Make the screenshots of the README and the guide from a real run of the page, so that they stay true.

    python -m docs.make_screenshots [--quick]

A server of its own takes the example of the flat cat through all steps and trains twice, with and without backbone pictures;
Chromium looks at the result.  Writes docs/images/page-NAME.png; --quick tries the script out with a tiny backbone, and
writes to a temporary folder.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gradio_client import Client
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from serving import server, tiny_backbone, wait_for  # noqa: E402

IMAGES = ROOT / "docs" / "images"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH = 1280
PROMPTS = (
    "a flat sticker of sks cat with tears of joy\na flat sticker of grinning sks cat\na flat sticker of kissing sks cat"
)


@dataclass(frozen=True)
class Shot:
    """A picture of a step: `tab` is its number, `shows` what must be there first, `from_` what it begins with (else the top
    of the page), `unfold` the title of a part to open, `height` how far it goes at most, in pixels."""

    name: str
    tab: int
    shows: str
    from_: str = ""
    unfold: str = ""
    height: int = 1000


SHOTS = (
    Shot("subject", 1, ".card img"),
    Shot("backbone", 2, ".pick img", from_="#pick-tools"),
    Shot("when", 2, "#curve figure", from_="#curve", height=900),
    Shot("groups", 2, "#groups table", from_="#groups", unfold="Groups and their verdicts", height=700),
    Shot("train", 3, "#losses svg", from_="#runs"),
    Shot("draw", 4, ".pair img", height=1400),
    Shot("compare", 5, "#grid img", height=1700),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    out = Path(tempfile.mkdtemp()) if args.quick else IMAGES
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        backbone = str(tiny_backbone(Path(folder) / "backbone")) if args.quick else "sticker"
        with server(Path(folder), "--backbone", backbone) as address:
            photograph(f"{address}/?project={finished_project(address, args.quick)}", out)


def finished_project(address: str, quick: bool) -> str:
    """Take the example through all steps by the page's endpoints; returns the project's id."""
    client = Client(address, verbose=False)
    project = client.predict("flat-cat", api_name="/use_example")
    client.predict(project, "Flat cat", api_name="/rename_project")
    client.predict(project, "cat", api_name="/use_pictures")
    few = {"shortlist": 24, "surrogate_steps": 2, "draws": 2, "sketch_size": 64} if quick else {}
    settings = {"steps": 20, "checkpoint_every": 10} if quick else {}
    for run, rule in (("001", "none"), ("002", "albat")):
        client.predict(project, rule=rule, **few, api_name="/find_pictures")
        wait_for(lambda: _ended(client.predict(project, api_name="/project_status"), "search"))
        client.predict(project, **settings, api_name="/train")
        wait_for(lambda run=run: _ended(client.predict(project, run, api_name="/run_status"), "state"))
    client.predict(project, PROMPTS, "002", num_images=6, api_name="/generate")
    wait_for(lambda: client.predict(project, api_name="/list_samples"))
    return project


def photograph(address: str, out: Path) -> None:
    """Take all pictures of a project."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = chromium.new_context(
            color_scheme="light", reduced_motion="reduce", viewport={"width": WIDTH, "height": 800}
        )
        page = context.new_page()
        for shot in SHOTS:
            page.set_viewport_size({"width": WIDTH, "height": 800})
            page.goto(address)
            standing = page.get_by_role("tab", name=re.compile("^4 "))  # where the project stood; only then may it be moved
            expect(standing).to_have_attribute("aria-selected", "true", timeout=120_000)
            take(page, shot, out / f"page-{shot.name}.png")
        chromium.close()


def take(page: Page, shot: Shot, file: Path) -> None:
    page.get_by_role("tab", name=re.compile(f"^{shot.tab} ")).click()
    shown = page.locator(shot.shows).first
    if shot.unfold:
        page.get_by_role("button", name=shot.unfold).click()
    expect(shown).to_be_visible(timeout=120_000)
    # As high as the page, up to the limit, so that the bar at the side stands beside the step.
    whole = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": min(whole, shot.height)})
    if shot.from_:
        page.locator(shot.from_).evaluate("element => element.scrollIntoView()")
    page.evaluate("[...document.images].forEach(image => { image.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(image => image.complete)", timeout=120_000)
    page.wait_for_timeout(500)  # the page's own tick after them
    page.screenshot(path=file)
    print(file)


def _ended(found: dict, key: str) -> bool:
    """Raises RuntimeError, with what it said, for a job that ended without a result."""
    if found[key] in ("failed", "stopped", "absent"):
        raise RuntimeError(found["message"] or found[key])
    return found[key] == "done"


if __name__ == "__main__":
    main()
