"""Plausible mistakes, and whether the tests notice them.

Each entry of `mutants.toml` changes one piece of the library: a wrong sign, a transposed factor, degrees of freedom of
something else.  The tests named there run against a copy of the library with that one mistake; a mutant is killed where
a test fails that passes without it.  Survivors are listed, those that the table explains (`survives = "why"`) apart
from the others.

    python tests/mutants.py                          # all of it: an hour or two on one core
    python tests/mutants.py --start 40 --count 20    # a piece
    python tests/mutants.py --shuffle --count 40     # a random sample
    python tests/mutants.py --only power             # entries with this word in their text, file or tests
    python tests/mutants.py --numbers 17 215         # these, in this order
    python tests/mutants.py --woven                  # with all mistakes in kernels in one build
    python tests/mutants.py --selected               # by the tests that run what changes, the cheapest first
    python tests/mutants.py --work DIRECTORY         # keep the build there for the next piece
    python tests/mutants.py --check                  # does every entry still fit the code?  (no build, no tests)

An entry is found by its text, which stands once in the library, so that it survives moves of files; `file` (a part of
the path) tells apart what stands at several places.  `tests` are names of test files without .py, or "name::part of the
names of tests".  The library is built once, in a copy of the tree (again for each mutant of a kernel; Cython, meson and
ninja must be on the path); the tree itself is not touched.  With `--woven`, that build holds the mistakes in kernels,
too, each behind a number that is read when the library is loaded (`weaving.py`): base variant of the lanes, compiled in
minutes with few optimisations, and then a mutant costs its tests only.  Entries that cannot be woven are listed.
With `--selected`, the tests run once with coverage.py to see which run which lines (`selecting.py`); that is kept in
`record` in the directory of `--work`, to be deleted when it has aged.  A mistake in Python is judged by the tests that
run its lines, cheap ones first, as many as `--budget` allows, and at last by those of them that the entry names, in all
cases, or by all that it names where none of these runs the lines.
The exit status is 1 where a mutant survives without a reason, or an entry does not fit the code or the tests any more.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import functools
import gc
import importlib
import os
import py_compile
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import selecting
import weaving

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")
LIBRARY, KERNELS = Path("python/fastlmm_core"), Path("fastlmm_core")
LOADED = (
    *("numpy", "pandas", "polars", "pyarrow", "scipy.stats", "scipy.optimize", "scipy.sparse.csgraph", "formulaic"),
    *("pytest", "hypothesis", "matplotlib", "execnet", "pdb"),
)
"""What is imported once for all runs of the tests."""
PLUGINS = ("xdist", "watch")
"""Of pytest; others are not loaded, which takes longer than most tests."""
FEW = 2.0
"""Seconds of tests that are tried before more are collected."""
LIMIT = 400
"""Seconds after which the tests of a mutant are stopped; a search without end counts as noticed."""
UNCOVER = """import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "MesonpyMetaFinder"]
"""
"""An editable install is found before any path is looked at; the mutants are found by a path."""
WATCH = """from pathlib import Path

def note(report):
    if report.failed:
        Path(__file__).with_suffix(".txt").write_text(report.nodeid)

pytest_runtest_logreport = pytest_collectreport = note
"""
"""A plugin of pytest that writes down what fails."""


class Misfit(Exception):
    """An entry that does not fit the code or the tests any more."""


@functools.cache
def texts(tree: Path) -> dict[Path, str]:
    """The library by files, as it is before anything is changed."""
    paths = sorted(path for part in (LIBRARY, KERNELS) for path in (tree / part).rglob("*"))
    suffixes = (".py", ".pyx", ".pxi", ".pxd", ".h")
    return {path.relative_to(tree): path.read_text() for path in paths if path.suffix in suffixes}


@functools.cache
def test_files(tree: Path) -> list[Path]:
    return sorted((tree / "tests").rglob("test_*.py"))


@functools.cache
def stands(tree: Path, test: str) -> bool:
    """Whether there is such a test, by its address without its case."""
    file, _, name = test.partition("::")
    path = tree / file
    return path.exists() and f"def {name.rpartition('::')[2]}(" in path.read_text()


@dataclass(frozen=True)
class Mutant:
    """One entry of the table."""

    was: str
    now: str
    tests: str
    file: str = ""
    survives: str = ""

    def source(self, tree: Path) -> Path:
        """The file in which the text stands, once, relative to the tree."""
        places: list[Path] = []
        for name, text in texts(tree).items():
            if self.file in str(name):
                places += [name] * text.count(self.was)
        if len(places) != 1:
            raise Misfit(f"stands {len(places)} times in the library: {self.was!r}")
        return places[0]

    def named(self, tree: Path) -> tuple[list[str], list[str]]:
        """The test files that the entry names, and a part of the names of their tests for each, which may be empty."""
        files: list[str] = []
        words: list[str] = []
        for item in self.tests.split():
            name, _, word = item.partition("::")
            found = [path for path in test_files(tree) if str(path).endswith(f"/{name}.py")]
            if len(found) != 1:
                raise Misfit(f"{len(found)} test files are called {name!r}")
            files.append(str(found[0].relative_to(tree)))
            words.append(word)
        return files, words

    def arguments(self, tree: Path) -> list[str]:
        """What pytest is to run."""
        files, words = self.named(tree)
        files = list(dict.fromkeys(files))
        return [*files, "-k", " or ".join(words)] if all(words) else files

    def rounds(self, tree: Path, record: selecting.Record | None, budget: float) -> Iterator[list[str]]:
        """What pytest is to run one time after the other, while everything passes."""
        name = self.source(tree)
        if record is None or name.suffix != ".py":
            yield self.arguments(tree)
            return
        named = list(zip(*self.named(tree), strict=True))
        touching = record.touching(name.relative_to(LIBRARY), self.was, self.now)
        touching = {test for test in touching if stands(tree, test.partition("[")[0])}
        liked = {test for test in touching if any(test.startswith(file) and word in test for file, word in named)}
        ordered = record.cheapest(touching, liked)
        chosen = list(record.within(ordered, budget))
        few = [test for test, spent in chosen if spent <= FEW]
        yield from filter(None, (few, [test for test, _ in chosen[len(few) :]]))
        # with the cases that were not recorded
        yield list(dict.fromkeys(test.partition("[")[0] for test in ordered if test in liked)) or self.arguments(tree)


class Copy:
    """A copy of the tree with a build of its own."""

    options: tuple[str, ...] = ()
    """Of the build."""

    def __init__(self, where: Path) -> None:
        self.tree, self.build, self.stage, start = (where / name for name in ("tree", "build", "stage", "start"))
        ignored = shutil.ignore_patterns(".git", ".venv*", "build*", "__pycache__", ".*_cache", ".hypothesis", "_build")
        for old in (self.stage, self.tree / "tests", self.tree / LIBRARY, self.tree / KERNELS):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(ROOT, self.tree, ignore=ignored, dirs_exist_ok=True)
        self.prepare()
        if not self.build.exists():
            self._run("meson", "setup", *self.options, str(self.build), str(self.tree))
        self.make()
        start.mkdir(exist_ok=True)
        (start / "sitecustomize.py").write_text(UNCOVER)
        (start / "watch.py").write_text(WATCH)
        self.failed, self.output = start / "watch.txt", start / "output.txt"
        path = os.pathsep.join([str(start), str(self.package.parent)])
        self.environment = os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        # compiled modules that know their source by its content: two mutants of a file may be of one length and second
        compileall.compile_dir(self.package, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)

    def prepare(self) -> None:
        """Change the copy before it is built."""

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")

    def make(self) -> None:
        """Compile what has changed, and install it."""
        self._run("ninja", "-C", str(self.build))
        self._run("meson", "install", "-C", str(self.build), "--no-rebuild", "--quiet", "--destdir", str(self.stage))

    @property
    def package(self) -> Path:
        """The installed library."""
        return next(self.stage.rglob("fastlmm_core/__init__.py")).parent

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The library with one mistake."""
        name = mutant.source(self.tree)
        kernel = name.suffix != ".py"
        path = self.tree / name if kernel else self.package / name.relative_to(LIBRARY)
        text = path.read_text()
        built = {so: so.read_bytes() for so in self.package.rglob("*.so")} if kernel else {}
        path.write_text(text.replace(mutant.was, mutant.now))
        try:
            if not kernel:
                compile(path.read_text(), name, "exec")
            if kernel:
                self.make()
            yield
        except SyntaxError as why:
            raise Misfit(f"no Python: {why}") from why
        finally:
            path.write_text(text)
            for so, content in built.items():
                so.write_bytes(content)

    def failure(self, arguments: list[str]) -> str:
        """The first test that fails; empty where all pass."""
        self.failed.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            self._test(["-x", *arguments])
        end = time.monotonic() + LIMIT
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"no end after {LIMIT} s"
            time.sleep(0.02)
        status = os.waitstatus_to_exitcode(done[1])
        if status == 0:
            return ""
        if status < 0:
            return f"the interpreter crashes (signal {-status})"
        if status > 2 or not self.failed.exists():
            raise Misfit(f"pytest ends with status {status}: {self.output.read_text()[-800:]}")
        return self.failed.read_text()

    def record(self, folder: Path) -> selecting.Record:
        """What the tests run, recorded folder by folder; what is there already is taken as it is."""
        if not folder.exists():
            shutil.copytree(self.package, folder / selecting.LIBRARY, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
        tests = self.tree / "tests"
        for part in sorted({tests / path.relative_to(tests).parts[0] for path in test_files(self.tree)}):
            if not (folder / part.stem).with_suffix(".json").exists():
                child = os.fork()
                if not child:
                    self._test(["--first-seeds", str(part.relative_to(self.tree))], folder / part.stem)
                os.waitpid(child, 0)
        return selecting.Record(folder, self.package)

    def _test(self, arguments: list[str], recorded: Path | None = None) -> NoReturn:
        """Run pytest in this process, a child that has the other libraries already, and end it."""
        import pytest

        status = 3
        sys.dont_write_bytecode = False  # tests are compiled, by pytest, once
        try:
            with self.output.open("w") as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
            os.chdir(self.tree)
            os.environ.update(self.environment)
            sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "MesonpyMetaFinder"]
            sys.path[:0] = self.environment["PYTHONPATH"].split(os.pathsep)
            importlib.invalidate_caches()
            recorder = [selecting.Recorder(self.package, recorded)] if recorded else []
            options = [*(f"-p{plugin}" for plugin in PLUGINS), "-n0", "-q", "-p", "no:cacheprovider"]
            status = int(pytest.main([*options, *arguments], recorder))
            for one in recorder:
                one.save()
        finally:
            os._exit(status)


class Woven(Copy):
    """A copy with all mistakes in kernels in one build, each behind its number."""

    options = ("-Doptimization=1",)

    def __init__(self, where: Path, table: list[Mutant]) -> None:
        self.table, self.left = table, set[int]()
        self.numbers: dict[Mutant, int] = {}
        super().__init__(where / "woven")

    def prepare(self) -> None:
        """Weave what can be woven; `left` is what cannot."""
        changes: dict[Path, dict[int, tuple[str, str]]] = defaultdict(dict)
        for number, mutant in enumerate(self.table):
            with contextlib.suppress(Misfit):
                name = mutant.source(self.tree)
                if name.suffix != ".py":
                    changes[name][number] = (mutant.was, mutant.now)
        self._write(KERNELS / "simd/woven.h", weaving.HEADER)
        variants = (self.tree / KERNELS / "meson.build").read_text()
        self._write(KERNELS / "meson.build", variants.replace("\nbase_only = ", "\nbase_only = true or "))
        for name, entries in changes.items():
            woven = set[int]()
            if name.suffix != ".h":
                text, woven = weaving.weave((self.tree / name).read_text(), entries, name.stem)
                self._write(name, text)
            self.left |= entries.keys() - woven
            self.numbers |= {self.table[number]: number for number in woven}

    def _write(self, name: Path, text: str) -> None:
        """Write a file that is as old as what it comes from, so that it is compiled again only where that changes."""
        path = self.tree / name
        sources = [path, self.tree / "tests/mutants.toml", self.tree / "tests/weaving.py"]
        times = [source.stat().st_mtime for source in sources if source.exists()]
        path.write_text(text)
        os.utime(path, (max(times), max(times)))

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """The library with one mistake."""
        if mutant not in self.numbers:
            with super().mutated(mutant):
                yield
            return
        self.environment[weaving.VARIABLE] = str(self.numbers[mutant])
        try:
            yield
        finally:
            del self.environment[weaving.VARIABLE]


def campaign(
    chosen: list[tuple[int, Mutant]], copy: Copy, record: selecting.Record | None = None, budget: float = 0.0
) -> int:
    """Run the mutants and print what becomes of each; the number of complaints."""
    healthy: dict[str, bool] = {}
    count = {"killed": 0, "explained": 0, "SURVIVED": 0, "MISFIT": 0}
    for number, mutant in chosen:
        begin = time.perf_counter()
        try:
            with copy.mutated(mutant):
                failed = next(filter(None, map(copy.failure, mutant.rounds(copy.tree, record, budget))), "")
            if "::" in failed and failed not in healthy:
                healthy[failed] = not copy.failure([failed])
            if not healthy.get(failed, True):
                raise Misfit(f"fails without a mutant too: {failed}")
            outcome = "killed" if failed else "explained" if mutant.survives else "SURVIVED"
            what = failed or mutant.survives or mutant.tests
        except Misfit as why:
            outcome, what = "MISFIT", str(why)
        count[outcome] += 1
        change = " ".join(f"{mutant.was}  ->  {mutant.now}".split())
        print(f"{number:>4}  {outcome:<9} {time.perf_counter() - begin:5.1f} s  {change}\n{'':>16}{what}", flush=True)
    ran = len(chosen) - count["MISFIT"]
    print(f"\n{count['killed']} of {ran} killed ({count['killed'] / max(ran, 1):.1%}), {count['explained']} explained, "
          f"{count['SURVIVED']} survived, {count['MISFIT']} do not fit")  # fmt: skip
    return count["SURVIVED"] + count["MISFIT"]


def check(chosen: list[tuple[int, Mutant]]) -> int:
    """Print and count the entries that do not fit the code or the tests."""
    lost = 0
    for number, mutant in chosen:
        try:
            mutant.source(ROOT)
            mutant.arguments(ROOT)
        except Misfit as why:
            lost += 1
            print(f"{number:>4}  {why}")
    print(f"{lost} of {len(chosen)} do not fit")
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description="Plausible mistakes, and whether the tests notice them.")
    parser.add_argument("--start", type=int, default=0, help="number of the first entry")
    parser.add_argument("--count", type=int, default=None, help="how many entries")
    parser.add_argument("--only", default="", help="entries with this word in their text, file or tests")
    parser.add_argument("--numbers", type=int, nargs="+", help="these entries, in this order")
    parser.add_argument("--woven", action="store_true", help="all mistakes in kernels in one build (base variant)")
    parser.add_argument("--selected", action="store_true", help="by the tests that run what changes, cheapest first")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of tests for each entry, with --selected")
    parser.add_argument("--shuffle", action="store_true", help="in an order that makes each piece a sample of all")
    parser.add_argument("--work", type=Path, help="where to build, and to keep the build for the next piece")
    parser.add_argument("--check", action="store_true", help="only see whether the entries fit the code")
    given = parser.parse_args()
    table = [Mutant(**entry) for entry in tomllib.loads(TABLE.read_text())["mutant"]]
    chosen = [(i, m) for i, m in enumerate(table) if given.only in f"{m.was}{m.now}{m.file}{m.tests}"]
    if given.numbers:
        chosen = [(i, table[i]) for i in given.numbers]
    if given.shuffle:
        random.Random(0).shuffle(chosen)
    chosen = chosen[given.start :][: given.count]
    if given.check:
        return int(check(chosen) > 0)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # nothing of it is looked through again, and copied for that, by each child
    with contextlib.ExitStack() as stack:
        where = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where.mkdir(parents=True, exist_ok=True)
        if not given.woven:
            copy = Copy(where.resolve())
            record = copy.record(where.resolve() / "record") if given.selected else None
            return int(campaign(chosen, copy, record, given.budget) > 0)
        copy = Woven(where.resolve(), table)
        left = sorted(copy.left & {number for number, _ in chosen})
        complaints = campaign([(number, mutant) for number, mutant in chosen if number not in left], copy)
        if left:
            print(f"not woven, to be run without --woven: --numbers {' '.join(map(str, left))}")
        return int(complaints > 0)


if __name__ == "__main__":
    raise SystemExit(main())
