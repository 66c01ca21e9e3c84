"""Examples in docstrings: what the reference lists has one, and each runs and shows what stands there."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlmm_core as flc

API = Path(__file__).parents[1] / "docs" / "api.md"
PARSER = doctest.DocTestParser()


def modules() -> list[str]:
    found = pkgutil.walk_packages(flc.__path__, "fastlmm_core.")
    return sorted(one.name for one in found if not one.name.startswith(("fastlmm_core.kernels", "fastlmm_core.__main")))


def documented(name: str) -> Iterator[tuple[str, str]]:
    """Docstrings of a module, with the names of what they are of."""
    module = importlib.import_module(name)
    yield name, module.__doc__ or ""
    for own, one in vars(module).items():
        if getattr(one, "__module__", None) != name:
            continue
        yield f"{name}.{own}", one.__doc__ or ""
        for inner, member in vars(one).items() if inspect.isclass(one) else ():
            doc = inspect.getdoc(member) if callable(member) or isinstance(member, property) else None
            if not inner.startswith("_") and doc and ">>>" in doc:
                yield f"{name}.{own}.{inner}", doc


EXAMPLES = sorted({place: doc for name in ("fastlmm_core", *modules()) for place, doc in documented(name)}.items())
EXAMPLES = [(place, doc) for place, doc in EXAMPLES if ">>>" in doc]


@pytest.mark.parametrize(("place", "doc"), EXAMPLES, ids=[place for place, _ in EXAMPLES])
def test_the_example_runs(place, doc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyplot = None
    if "plot" in doc:
        pyplot = pytest.importorskip("matplotlib.pyplot")
        pyplot.switch_backend("agg")
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    # beside the names of the data sets' own module, which its examples use bare
    names = dict(vars(flc.datasets)) if place.startswith("fastlmm_core.datasets") else {}
    runner.run(PARSER.get_doctest(inspect.cleandoc(doc), names, place, place, 0), out=report.append)
    if pyplot is not None:
        pyplot.close("all")
    assert runner.failures == 0, "".join(report)


def named(name: str) -> Any:
    """What a name of the reference stands for; functions may have the name of their module."""
    found = pkgutil.resolve_name(f"fastlmm_core.{name}")
    return getattr(found, name.rpartition(".")[2]) if inspect.ismodule(found) else found


def public() -> Iterator[str]:
    """Functions of the reference, and the methods of models and results."""
    for name in re.findall(r"^   ([A-Za-z_][\w.]*)$", API.read_text(encoding="utf-8"), re.MULTILINE):
        if not inspect.isclass(named(name)):
            yield name
    for owner in (flc.LMMResult, flc.LinearMixedModel):
        yield from (
            f"{owner.__name__}.{name}"
            for name, member in vars(owner).items()
            if inspect.isfunction(member) and not name.startswith("_")
        )


@pytest.mark.skipif(not API.exists(), reason="the tests stand without the rest of the tree")
def test_every_public_function_has_an_example():
    names = list(public())
    assert len(names) > 80
    assert [name for name in names if ">>>" not in (named(name).__doc__ or "")] == []
