"""Which tests run a line of the library, and how long they take: what `mutants.py --selected` chooses from.

A recording runs the tests once under coverage.py, in which each test is a context of its own, and so is each fixture
that several tests share.  What is kept in caches is dropped after each of them, for what a test finds there would
count for the one before.  Lines that run when the library is imported belong to no test: for them stand the lines of
the same file that have the name to which the statement gives a value, and else the whole file.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

CASES = 6
"""Cases of a test that are recorded, at most, from the first to the last."""
LIBRARY = "library"
"""Folder of a recording with the texts to which its lines belong."""
COLLECT = 0.3
"""Seconds that a file of tests takes to be collected, about."""


class Recorder:
    """A plugin of pytest that records what each test runs of a package, and saves it under a path without suffix."""

    def __init__(self, package: Path, path: Path) -> None:
        import coverage

        self.package, self.path, self.current = package, path, ""
        self.coverage = coverage.Coverage(
            data_file=str(path.with_suffix(".lines")), source=[str(package)], config_file=False, messages=False
        )
        self.seconds, self.shared = defaultdict[str, float](float), defaultdict[str, list[str]](list)
        self.failed = set[str]()
        self.coverage.erase()
        self.coverage.start()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        functions = defaultdict[str, list[pytest.Item]](list)
        for item in items:
            functions[item.nodeid.partition("[")[0]].append(item)
        items[:] = [cases[k * len(cases) // CASES] if len(cases) > CASES else cases[k]
                    for cases in functions.values() for k in range(min(CASES, len(cases)))]  # fmt: skip

    def _switch(self, context: str) -> str:
        before, self.current = self.current, context
        self.coverage.switch_context(context)
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, object, object]:
        for fixtures in item._fixtureinfo.name2fixturedefs.values():
            for fixture in fixtures:
                if fixture.scope != "function":
                    self.shared[f"{fixture.baseid}:{fixture.argname}"].append(item.nodeid)
        self._switch(item.nodeid)
        outcome = yield
        self._switch("")
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) or ""
            if "/tests/" in file or file.startswith(str(self.package)):
                for value in vars(module).values():
                    if isinstance(value, functools._lru_cache_wrapper):
                        value.cache_clear()
        return outcome

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        name, begin = f"{fixturedef.baseid}:{fixturedef.argname}", time.perf_counter()
        before = self._switch(name)
        try:
            return (yield)
        finally:
            self._switch(before)
            taken = time.perf_counter() - begin
            self.seconds[name] += taken
            self.seconds[before] -= taken

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def save(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        shared = {name: tests for name, tests in self.shared.items() if name in self.seconds}
        seconds = {test: max(taken, 0.0) for test, taken in self.seconds.items() if test not in self.failed}
        self.path.with_suffix(".json").write_text(json.dumps({"seconds": seconds, "shared": shared}))


class Record:
    """What recordings say, those of all pieces of the tests in one folder."""

    def __init__(self, folder: Path, package: Path) -> None:
        from coverage import CoverageData

        self.library, self.package, self.data = folder / LIBRARY, package, list[CoverageData]()
        self.seconds: dict[str, float] = {}
        self.shared: dict[str, list[str]] = {}
        self.files: dict[Path, defaultdict[int, set[str]]] = {}
        for path in sorted(folder.glob("*.json")):
            said = json.loads(path.read_text())
            self.seconds |= said["seconds"]
            self.shared |= said["shared"]
            self.data.append(CoverageData(str(path.with_suffix(".lines"))))
            self.data[-1].read()

    def contexts(self, name: Path) -> dict[int, set[str]]:
        """The tests that run each line of a file of the package, and what they share."""
        if name not in self.files:
            found = self.files[name] = defaultdict(set)
            for data in self.data:
                for line, contexts in data.contexts_by_lineno(str(self.package / name)).items():
                    found[line].update(contexts)
        return self.files[name]

    def tests(self, name: Path, lines: Iterable[int]) -> set[str]:
        """The tests that run one of the lines and passed."""
        found = set[str]()
        for line in lines:
            found |= self.contexts(name).get(line, set())
        for fixture in found & self.shared.keys():
            found |= set(self.shared[fixture])
        return found & (self.seconds.keys() - self.shared.keys())

    def touching(self, name: Path, was: str, now: str) -> set[str]:
        """The tests that run what changes in a file."""
        text = (self.library / name).read_text() if (self.library / name).exists() else ""
        if text.count(was) != 1:
            return set()
        lines, names = changed(text, was, now)
        found = self.tests(name, lines)
        if not found and names:
            words = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
            found = self.tests(name, [i for i, row in enumerate(text.splitlines(), 1) if words.search(row)])
        return found or self.tests(name, range(1, text.count("\n") + 2))

    def cheapest(self, tests: Iterable[str], liked: set[str]) -> list[str]:
        """Tests by what they cost; those of one function one after the other, and liked ones earlier."""
        functions = defaultdict[str, list[str]](list)
        for test in tests:
            functions[test.partition("[")[0]].append(test)
        order = dict[str, float]()
        for cases in functions.values():
            for later, test in enumerate(sorted(cases, key=self.seconds.__getitem__)):
                order[test] = (self.seconds[test] + 0.02) * 2.0**later * (0.1 if test in liked else 1.0)
        return sorted(order, key=order.__getitem__)

    def within(self, tests: Iterable[str], budget: float) -> Iterator[tuple[str, float]]:
        """Tests as long as they take no more than a budget, at least one, and what all until there take."""
        spent, files = 0.0, set[str]()
        for test in tests:
            file = test.partition("::")[0]
            cost = self.seconds[test] + COLLECT * (file not in files)
            if spent + cost <= budget or not spent:
                files.add(file)
                spent += cost
                yield test, spent


def changed(text: str, was: str, now: str) -> tuple[list[int], list[str]]:
    """Lines of the innermost statement that has what changes, and the names it gives a value to.

    Of a statement with a body they are those of its header; of the header of a function those of its body, which runs
    where the header matters.
    """
    same = 0
    while same < min(len(was), len(now)) and was[same] == now[same]:
        same += 1
    begin = text.index(was)
    end = begin + len(was) - 1
    first, last = (1 + text.count("\n", 0, at) for at in (min(begin + same, end), end))
    if was.endswith("\n"):
        last = max(first, last)
    best, names = range(first, last + 1), list[str]()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.stmt):
            continue
        body = getattr(node, "body", None)
        head = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        foot = body[0].lineno - 1 if body else node.end_lineno or node.lineno
        foot = max(foot, node.lineno)
        if head <= first and last <= foot:
            best, names = range(head, foot + 1), []
            if isinstance(node, ast.FunctionDef):
                best = range(foot, (node.end_lineno or foot) + 1)
            elif isinstance(node, ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return list(best), names
