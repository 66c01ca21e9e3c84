"""Run every benchmark with --smoke; fail if one fails.

Each runs in a copy of this process where the system has `fork`, so that what all of them import is loaded once.
"""

from __future__ import annotations

import _threads  # noqa: F401  (first: threads are counted when numpy is loaded)

# isort: split
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pandas  # noqa: F401
import scipy.linalg
import scipy.optimize
import scipy.stats  # noqa: F401

import _harness  # noqa: F401
import fastlmm_core  # noqa: F401

SCRIPTS = (
    "sleepstudy.py", "startup.py", "million.py", "scaling.py", "columns.py", "evaluation.py", "batch.py",
    "hostile.py", "inference.py", "robust.py", "series.py", "profiles.py", "influence.py", "comparison.py",
    "crossed.py", "iterative.py", "factors.py", "genes.py", "latency.py", "structured.py", "dropout.py", "search.py",
    "simr.py", "scan.py", "each.py", "against.py",
)  # fmt: skip


def copied(path: Path) -> tuple[bool, str]:
    """Whether a script ends well in a copy of this process, and what it prints."""
    with tempfile.TemporaryFile("w+") as output:
        pid = os.fork()
        if pid == 0:
            ended = 1
            try:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.argv = [str(path), "--smoke"]
                runpy.run_path(str(path), run_name="__main__")
                ended = 0
            except SystemExit as status:
                ended = int(status.code not in (None, 0))
                if isinstance(status.code, str):
                    print(status.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ended)
        status = os.waitpid(pid, 0)[1]
        output.seek(0)
        return status == 0, output.read()


def run(path: Path) -> tuple[bool, str]:
    if hasattr(os, "fork"):
        return copied(path)
    done = subprocess.run([sys.executable, str(path), "--smoke"], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def main() -> int:
    failed = []
    for script in SCRIPTS:
        start = time.perf_counter()
        passed, output = run(Path(__file__).with_name(script))
        print(f"{script:15} {'ok' if passed else 'FAILED'} ({time.perf_counter() - start:.1f} s)", flush=True)
        if not passed:
            failed.append(script)
            print(output, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
