"""Options and fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# The BLAS of numpy and that of scipy each bring a pool of spinning threads. On the small matrices of the tests the two
# pools fight for the cores (an oracle fit went from 0.7 s to 60 s), so each gets one thread by default.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
# Helper modules (oracle, nist) stand beside the tests; the importlib mode of pytest leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", default=False, help="also run the tests marked slow")
    parser.addoption(
        "--first-seeds",
        action="store_true",
        default=False,
        help="run tests that differ in their `seed` for one of them",
    )
    parser.addoption(
        "--record",
        action="store_true",
        default=False,
        help="add to tests/reference/landscapes.json the minima that dense searches find (in one process)",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes of `-n auto`: as many as there are cores for all tests, none but this one where some were named."""
    if config.args_source is config.ArgsSource.ARGS:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def later_seed(item: pytest.Item, seen: set[tuple]) -> bool:
    """Whether the test was seen with another `seed`, everything else as it is here."""
    case = getattr(item, "callspec", None)
    if case is None or "seed" not in case.params:
        return False
    others = tuple((name, repr(value)) for name, value in sorted(case.params.items()) if name != "seed")
    one = (item.location[0], getattr(item, "originalname", item.name), others)
    found = one in seen
    seen.add(one)
    return found


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = [] if config.getoption("--run-slow") else [item for item in items if item.get_closest_marker("slow")]
    if config.getoption("--first-seeds"):
        seen: set[tuple] = set()
        slow = set(dropped)
        dropped += [item for item in items if item not in slow and later_seed(item, seen)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        gone = set(dropped)
        items[:] = [item for item in items if item not in gone]


def pytest_collection_finish(session: pytest.Session) -> None:
    # what collecting has made stays to the end: no garbage collection has to look through it again
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--record"):
        import landscapes

        landscapes.record()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the name of the test only, not on the order of the tests."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(scope="session")
def fitted_reference():
    """`fits.fitted_reference(name, reml, path)`: the fit of a reference, made once."""
    import fits

    return fits.fitted_reference
