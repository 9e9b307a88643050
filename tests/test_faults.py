"""The fault benchmark's short form: killed, killed in a checkpoint write, out of disk, server killed; nothing is lost."""

import re
import subprocess
import sys


def test_whatever_ends_a_training_it_resumes_to_the_weights_of_an_uninterrupted_one():
    done = subprocess.run([sys.executable, "benchmarks/faults", "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE))
    assert figures["trials"] == figures["bit_equal"] == "5" and figures["corrupt_files"] == "0"
    assert "in a checkpoint" in done.stdout, "no blow fell inside a checkpoint write"
