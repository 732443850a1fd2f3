"""The published load benchmark, run whole: 64 clients for a minute, then twice what the server takes on."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_64_clients_for_a_minute_meet_no_5xx_no_early_429_and_flat_memory() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/load.py"], cwd=REPO, capture_output=True, text=True, encoding="utf-8"
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
