"""What every benchmark writes: docs/benchmarks/NAME.json and .md with figures, hardware, versions and command."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
PACKAGES = ("torch", "diffusers", "peft", "open-clip-torch", "transformers", "gradio", "lancedb")


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(name: str, figures: dict, text: str, headline: dict[str, float]) -> None:
    """Write both files and print the headline figures last, one `name value` a line."""
    import torch

    hardware = f"{processor()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
    versions = {package: version(package) for package in PACKAGES}
    command = " ".join(["python", *sys.argv])
    DOCS.mkdir(parents=True, exist_ok=True)
    record = {"figures": figures, "hardware": hardware, "versions": versions, "command": command}
    (DOCS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    footer = f"\n\nHardware: {hardware}. Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.\nCommand: `{command}`.\n"
    (DOCS / f"{name}.md").write_text(text.rstrip() + footer, encoding="utf-8")
    for key, value in headline.items():
        print(key, value)
