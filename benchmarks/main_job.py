"""How long the main job takes on this machine: page up, selection, training, samples, with each one's split.

    python benchmarks/main_job.py [--quick] [--subject assets/examples/flat-cat] [--class-noun cat]

Nothing else should run meanwhile.  Writes docs/benchmarks/main_job.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import record

ROOT = Path(__file__).parents[1]
ALLOWED = {"page_up_s": 15, "selection_s": 90, "training_400_steps_s": 150, "8_samples_s": 15}


def page_up(data: Path) -> float:
    """Seconds from starting app.py to its first answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, env=os.environ | {"BAT_UI_DATA": str(data)}
    )
    try:
        while time.perf_counter() - started < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    answer.read()
                return time.perf_counter() - started
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError("the page did not answer within two minutes")
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--subject", type=Path, default=ROOT / "assets" / "examples" / "flat-cat")
    parser.add_argument("--class-noun", default="cat")
    args = parser.parse_args()
    short = ["--steps", "40", "--shortlist", "60", "--surrogate-steps", "10"] if args.quick else []
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        environment = os.environ | {"BAT_UI_DATA": str(data)}
        command = [sys.executable, "-m", "bat_ui", "personalize", str(args.subject), "--class-noun", args.class_noun]
        subprocess.run([*command, "--out", str(out), *short], cwd=ROOT, env=environment, check=True)
        # A second selection, since the first one built the store.
        subprocess.run([sys.executable, "-m", "bat_ui", "select", str(out), *short], cwd=ROOT, env=environment, check=True)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        page_up(data)
        up = page_up(data)
    parts = {name: report[name]["seconds"] for name in ("selection", "training", "generation")}
    per_step = parts["training"]["training"] / report["training"]["steps"]
    figures = {
        "page_up_s": up,
        "selection_s": sum(parts["selection"].values()),
        "training_400_steps_s": parts["training"]["encoding"] + 400 * per_step,
        "8_samples_s": parts["generation"]["with_adapter"],
    }
    rows = "\n".join(f"| {name} | {value:.1f} | {ALLOWED[name]} |" for name, value in figures.items())
    split = "\n".join(f"| {stage}: {name} | {s:.1f} |" for stage, values in parts.items() for name, s in values.items())
    text = f"""# The main job, timed

| figure | seconds | allowed |
| --- | --- | --- |
{rows}

Once the store is built and files are in the system's cache; loading Python and the models is not in selection, training and
samples, which run in processes of their own. The split, from report.json:

| part | seconds |
| --- | --- |
{split}
"""
    record.write("main_job", {**figures, "split": parts}, text, {name: round(value, 2) for name, value in figures.items()})


if __name__ == "__main__":
    main()
