"""What every benchmark writes: docs/benchmarks/NAME.json and .md with figures, hardware, versions and command."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks run from a clone, without an installation

from bat_ui.hardware import describe_hardware  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
PACKAGES = ("torch", "diffusers", "peft", "open-clip-torch", "transformers", "gradio", "lancedb")


def write(name: str, figures: dict, text: str, headline: dict[str, float]) -> None:
    """Write both files and print the headline figures last, one `name value` a line."""
    hardware = describe_hardware()
    versions = {package: version(package) for package in PACKAGES}
    command = " ".join(["python", *sys.argv])
    DOCS.mkdir(parents=True, exist_ok=True)
    record = {"figures": figures, "hardware": hardware, "versions": versions, "command": command}
    (DOCS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    listed = ", ".join(f"{package} {number}" for package, number in versions.items())
    footer = f"\n\nHardware: {hardware}. Versions: {listed}.\nCommand: `{command}`.\n"
    (DOCS / f"{name}.md").write_text(text.rstrip() + footer, encoding="utf-8")
    for key, value in headline.items():
        print(key, value)


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))
