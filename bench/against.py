"""This working tree against an earlier commit: the same work in two processes, one sample of each in turn.

    python bench/against.py REV                       # every piece of work
    python bench/against.py REV --only evaluation deletions --rounds 41

REV is built in a temporary folder and environment, with the packages (numpy above all) of this one; what is
compared with it is the fastlmm_core that this interpreter imports.  Building takes what the CONTRIBUTING page names
(meson-python, cython, ninja).  A ratio is head / base: the median over rounds of time here divided by time there, with
the quartiles of that quotient; times are of the CPU.  A time is refused where the two answers disagree, and `--check`
fails on a median above the limit.  What REV cannot do, for lack of a name, is left out and named.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import _harness

# isort: split
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.05
"""Largest acceptable median of head / base."""

PROCESSES = 3
"""Pairs of processes among which the rounds are dealt out: where the memory of one happens to lie is worth 5 %."""

Work = tuple[Callable[[], Any], Callable[[Any], float]]
"""A piece of work, and a number by which two answers are compared."""


# ------------------------------------------------------------------------------------------------- the pieces of work
# Public names only, and few of them: both commits have to know them.


def evaluation(order: int) -> Work:
    import fastlmm_core as flc
    from evaluation import problem

    model = flc.LinearMixedModel(*problem(6_000))
    points = itertools.cycle([np.array([0.9, 0.2, 0.5]) * (1.0 + 1e-4 * i) for i in range(1000)])
    return lambda: model.evaluate(next(points), reml=True, order=order), lambda found: found.value


def arrays() -> Work:
    import fastlmm_core as flc
    from _problems import sleepstudy_arrays

    data = sleepstudy_arrays()
    return lambda: flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit(), lambda found: found.criterion


def formula() -> Work:
    import fastlmm_core as flc
    from _problems import SLEEPSTUDY_FORMULA, sleepstudy_frame

    frame = sleepstudy_frame()
    return lambda: flc.lmm(SLEEPSTUDY_FORMULA, frame).fit(), lambda found: found.criterion


def rows(times: str) -> Work:
    import fastlmm_core as flc
    from _problems import growth

    data = growth(20_000, times=times)
    return lambda: flc.LinearMixedModel(data.y, data.x, data.z, data.codes).fit(), lambda found: found.criterion


def batch(q: int) -> Work:
    import fastlmm_core as flc
    from _problems import sleepstudy_arrays
    from batch import own_times

    data = sleepstudy_arrays()
    model = flc.LinearMixedModel(data.y, data.x, data.z, data.codes) if q == 0 else own_times(100, 1_000, q, 4)
    responses = model.fit().simulate(1_000, seed=1)
    return lambda: model.fit_many(responses, n_jobs=1), lambda found: float(np.sum(found.criterion))


def deletions(by: str) -> Work:
    import fastlmm_core as flc
    from influence import problem

    result = flc.LinearMixedModel(*problem(1_000)).fit()
    return lambda: result.influence(by=by), lambda found: float(np.sum(found.criterion))


def satterthwaite() -> Work:
    import fastlmm_core as flc
    from evaluation import problem

    data = problem(200)
    return (
        lambda: flc.LinearMixedModel(*data).fit().conf_int(),
        lambda found: float(np.sum(np.asarray(found))),
    )


def several(shape: str) -> Work:
    import fastlmm_core as flc

    rng = np.random.default_rng(3)
    if shape == "crossed":
        n = 20_000
        f, g = rng.integers(0, 1_500, n), rng.integers(0, 300, n)
    elif shape == "nested":
        n = 60_000
        f = rng.permutation(np.arange(n) // 6)
        g = f // 20
    else:
        n = 144
        f, g = np.repeat(np.arange(24), 6), np.tile(np.arange(6), 24)
    x = np.column_stack([np.ones(n), rng.standard_normal(n)])
    y = x @ [1.0, 0.5] + rng.standard_normal(f.max() + 1)[f] + 0.7 * rng.standard_normal(g.max() + 1)[g]
    y = y + rng.standard_normal(n)
    factors = [flc.RandomTerm(None, f, "f"), flc.RandomTerm(None, g, "g")]
    return lambda: flc.LinearMixedModel(y, x, terms=factors).fit(), lambda found: found.criterion


WORK: dict[str, Callable[[], Work]] = {
    "evaluation: value, gradient, Hessian": lambda: evaluation(2),
    "evaluation: value, gradient": lambda: evaluation(1),
    "evaluation: value": lambda: evaluation(0),
    "fit: sleepstudy from arrays": arrays,
    "fit: sleepstudy from a formula": formula,
    "fit: 200,000 rows, shared times": lambda: rows("shared"),
    "fit: 200,000 rows, own times": lambda: rows("own"),
    "batch: sleepstudy": lambda: batch(0),
    "batch: own times, q = 2": lambda: batch(2),
    "batch: own times, q = 3": lambda: batch(3),
    "deletions: 1,000 groups": lambda: deletions("group"),
    "deletions: 10,000 rows": lambda: deletions("observation"),
    "inference: fit and Satterthwaite": satterthwaite,
    "several: crossed, small": lambda: several("small"),
    "several: crossed": lambda: several("crossed"),
    "several: nested": lambda: several("nested"),
}


# ---------------------------------------------------------------------------------------------------- the two processes


def sample(run: Callable[[], Any], number: int) -> float:
    """Mean seconds of CPU of `number` calls, so that what else the machine does counts less than on a clock."""
    with _harness.paused_gc():
        start = time.process_time()
        for _ in range(number):
            run()
        return (time.process_time() - start) / number


def serve() -> None:
    """A worker: each line of the input names a piece of work and a number of calls; the answer is a line of JSON."""
    known: dict[str, Work] = {}
    for line in sys.stdin:
        name, number = json.loads(line)
        try:
            if name not in known:
                known[name] = WORK[name]()
            run, value = known[name]
            reply = {"value": value(run())} if number == 0 else {"seconds": sample(run, number)}
        except Exception as error:  # another commit may lack what is asked for
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


class Worker:
    """One side of the comparison."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, name: str, number: int) -> dict[str, Any]:
        """Seconds per call of `number` calls; for 0 the answer's value."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, number]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@contextmanager
def built(revision: str) -> Iterator[str]:
    """The interpreter of an environment in which `revision` is installed beside the packages of this one."""
    with tempfile.TemporaryDirectory() as folder:
        tree, environment = Path(folder) / "tree", Path(folder) / "environment"
        tree.mkdir()
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], stdout=subprocess.PIPE, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(tree, filter="data")
        venv.create(environment)
        python = environment / "bin" / "python"
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        # folders named by a .pth file come after the environment's own, and their .pth files are not read: an editable
        # installation there does not get in the way
        others = [path for path in sys.path if path.endswith("-packages")]
        (Path(site) / "packages.pth").write_text("\n".join(others) + "\n")
        install = ["install", "--quiet", "--no-build-isolation", "--no-deps", "--ignore-installed", str(tree)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
        yield str(python)


def compare(pairs: list[tuple[Worker, Worker]], name: str, rounds: int) -> np.ndarray | str:
    """Seconds (rounds, 2) of head and base, or why there are none."""
    for pair in pairs:
        values = [side.ask(name, 0) for side in pair]
        for side, reply in zip(("here", "there"), values, strict=True):
            if "error" in reply:
                return f"fails {side}: {reply['error']}"
        here, there = (reply["value"] for reply in values)
        if not abs(here - there) <= 1e-7 * max(abs(here), 1.0):
            return f"the answers disagree: {here} here, {there} there"
    number = max(1, int(0.02 / max(pairs[0][0].ask(name, 1)["seconds"], 1e-7)))
    samples = np.empty((rounds, 2))
    for i in range(rounds):
        pair = pairs[i % len(pairs)]
        for column in (0, 1) if (i // len(pairs)) % 2 else (1, 0):
            samples[i, column] = pair[column].ask(name, number)["seconds"]
    return samples


def main() -> int:
    parser: argparse.ArgumentParser = _harness.parser(__doc__)
    parser.add_argument("revision", nargs="?", default="HEAD", metavar="REV", help="the commit to compare with")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="work whose name holds one of the words")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--base", metavar="PYTHON", help="an interpreter that has REV already: nothing is built")
    options = parser.parse_args()
    report = _harness.Report(f"head against {options.revision}", _harness.environment())
    names = [name for name in WORK if not options.only or any(word in name for word in options.only)]
    if options.smoke:
        options.base, names, options.rounds = options.base or sys.executable, names[3:4], 2

    with nullcontext(options.base) if options.base else built(options.revision) as python:
        pairs = [(Worker(sys.executable), Worker(python)) for _ in range(1 if options.smoke else PROCESSES)]
        table, slow, left_out = [], [], []
        for name in names:
            found = compare(pairs, name, options.rounds)
            if isinstance(found, str):
                left_out.append(f"  left out: {name}: {found}")
                if "disagree" in found:
                    report.fail(f"{name}: {found}")
                continue
            low, ratio, high = np.percentile(found[:, 0] / found[:, 1], [25, 50, 75])
            seconds = [_harness.format_seconds(float(t)) for t in np.median(found, axis=0)]
            table.append((name, *seconds, f"{ratio:.3f}", f"{low:.3f} - {high:.3f}"))
            if ratio > LIMIT:
                slow.append((name, float(ratio)))
        for worker in itertools.chain.from_iterable(pairs):
            worker.close()
    report.table(f"{options.rounds} rounds", ("", "head", "base", "head / base", "quartiles"), table)
    print("\n".join(left_out))
    for name, ratio in slow:
        report.target(name, ratio, LIMIT)
    return report.finish(options)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main())
