"""What a training survives: SIGKILL at random moments and inside checkpoint writes, a full disk, a killed server.

    python benchmarks/faults [--quick] [--seed 0]

Writes docs/benchmarks/faults.md and .json; --quick hits each way once or twice and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # forked workers must not wait for threads that stayed behind
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import record  # noqa: E402
from faults import Bench  # noqa: E402
from serving import tiny_backbone  # noqa: E402

FULL = {"kills": 100, "full_disks": 20, "servers": 5, "steps": 40, "every": 4}
QUICK = {"kills": 2, "full_disks": 2, "servers": 1, "steps": 9, "every": 3}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    plan, rng = QUICK if args.quick else FULL, random.Random(args.seed)
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BAT_UI_DATA"] = folder
        bench = Bench(Path(folder), tiny_backbone(Path(folder) / "backbone"), plan["steps"], plan["every"])
        begun = [bench.kill_server(rng) for _ in range(plan["servers"])] if args.quick else []
        for i in range(plan["kills"]):
            trials.append(bench.kill(f"kill{i}", rng, in_checkpoint=i % 2 == 1))
        for i in range(plan["full_disks"]):
            trials.append(bench.fill_disk(f"disk{i}", rng))
        for finish in begun or (bench.kill_server(rng) for _ in range(plan["servers"])):
            trials.append(finish())
    report(trials, plan, quick=args.quick)
    if not all(trial.equal and not trial.corrupt for trial in trials):
        sys.exit(1)


def report(trials: list, plan: dict, quick: bool) -> None:
    rows, figures = [], {}
    for fault in dict.fromkeys(trial.fault for trial in trials):
        group = [trial for trial in trials if trial.fault == fault]
        hits = Counter(place for trial in group for place in trial.hit_at)
        equal, corrupt = sum(trial.equal for trial in group), sum(len(trial.corrupt) for trial in group)
        where = ", ".join(f"{place} {count}" for place, count in hits.most_common())
        rows.append(f"| {fault} | {len(group)} | {where} | {equal} | {corrupt} |")
        figures[fault.replace(" ", "_")] = {"trials": len(group), "hits": dict(hits), "equal": equal, "corrupt": corrupt}
    figures["trials"] = [asdict(trial) for trial in trials]
    headline = {
        "trials": len(trials),
        "bit_equal": sum(trial.equal for trial in trials),
        "corrupt_files": sum(len(trial.corrupt) for trial in trials),
    }
    if quick:
        for trial in trials:
            print(trial)
        for key, value in headline.items():
            print(key, value)
        return
    text = f"""# What a training survives

| what was done | trials | where it hit | ended with the weights of the uninterrupted run | corrupt files |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Runs of {plan["steps"]} steps with a checkpoint, samples and metrics every {plan["every"]}, on the tests' tiny backbone and
the CPU; weights, losses and metrics are compared byte by byte. A third of the killed runs were killed a second time while
they resumed. Full disk: from a random moment on the system refuses every file that would grow (RLIMIT_FSIZE), and stops
refusing before the run is resumed. Killed server: the process that keeps the queue; its worker goes on and the next one
takes over. Corrupt files: all files under their final names were read to the end after each blow.
"""
    record.write("faults", figures, text, headline)


if __name__ == "__main__":
    main()
