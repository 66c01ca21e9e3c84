"""Run every benchmark with --smoke; fail if one fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = (
    "sleepstudy.py", "startup.py", "million.py", "scaling.py", "columns.py", "evaluation.py", "batch.py",
    "hostile.py", "inference.py", "robust.py", "series.py", "profiles.py", "influence.py", "comparison.py",
    "crossed.py", "iterative.py", "factors.py", "genes.py", "latency.py", "structured.py", "dropout.py", "search.py",
    "simr.py", "scan.py", "each.py", "against.py",
)  # fmt: skip


def main() -> int:
    failed = []
    for script in SCRIPTS:
        start = time.perf_counter()
        path = Path(__file__).with_name(script)
        done = subprocess.run([sys.executable, str(path), "--smoke"], capture_output=True, text=True, check=False)
        print(f"{script:15} {'ok' if done.returncode == 0 else 'FAILED'} ({time.perf_counter() - start:.1f} s)")
        if done.returncode != 0:
            failed.append(script)
            print(done.stdout + done.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
