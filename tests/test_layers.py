"""Imports run one way: a folder imports only from folders on lower floors, lazily, for types or otherwise."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sources import imports, parsed, read

SOURCE = Path(__file__).parents[1] / "python" / "fastlmm_core"

FLOORS = [
    {"errors"},
    {"support"},
    {"kernels", "cython_lmm"},
    {"covariance", "tables"},
    {"design", "problem"},
    {"formula", "engines"},
    {"estimation", "streams"},
    {"simulation"},
    {"inference"},
    {"batch_result", "prediction"},
    {"diagnostics"},
    {"report", "archive", "plots"},
    {"result"},
    {"model"},
    {"planning", "each", "bridges"},
    {"datasets"},
    {"__init__"},
    {"commands"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

FILES = sorted([*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyi")])


def room(path: Path) -> str:
    """The folder, or the module beside the folders, in which a file stands."""
    return path.relative_to(SOURCE).parts[0].split(".")[0]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Rooms that a file imports from, anywhere in it, with the line."""
    here = path.relative_to(SOURCE).parts
    for node in imports(path):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = [*here[: len(here) - node.level], *(node.module.split(".") if node.module else [])]
        for name in parts[:1] or [alias.name for alias in node.names]:
            yield name if name in FLOOR else "__init__", node.lineno


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    own = room(path)
    assert [(name, line) for name, line in imported(path) if name != own and FLOOR[name] >= FLOOR[own]] == []


def test_absolute_imports_of_the_library_are_not_used():
    # they would not be seen above
    for path in FILES:
        for node in imports(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.split(".")[0] == "fastlmm_core"], f"{path}:{node.lineno}"


def graph() -> dict[str, set[str]]:
    """The modules that each module imports, anywhere in it."""
    modules = {}
    for path in FILES:
        parts = path.relative_to(SOURCE).with_suffix("").parts
        modules[parts[:-1] if parts[-1] == "__init__" else parts] = path
    out: dict[str, set[str]] = {}
    for own, path in modules.items():
        found = set()
        here = path.relative_to(SOURCE).parts
        for node in imports(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = (*here[: len(here) - node.level], *(node.module.split(".") if node.module else []))
                names = [(*base, alias.name) for alias in node.names]
                found |= {name if name in modules else base for name in names}
        out[".".join(own)] = {".".join(name) for name in found if name in modules and name != own}
    return out


def test_no_circles_within_a_room():
    arrows = graph()
    reached = {name: {name} for name in arrows}
    grown = True
    while grown:
        grown = False
        for _name, known in reached.items():
            new = set().union(*(arrows[other] for other in known)) - known
            known |= new
            grown = grown or bool(new)
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in arrows}
    # the package itself holds the public names, which it imports when they are asked for
    assert [sorted(circle) for circle in circles if len(circle) > 1 and "" not in circle] == []


OF_TUPLES = {"_replace", "_make", "_fields", "_asdict"}
"""Names of named tuples, whose underscore keeps them apart from fields."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_attributes_are_read_where_they_are_defined(path):
    known = read(path).names | OF_TUPLES | {"_getframe"}
    for node in read(path).private:
        if node.attr in known:
            continue
        # a class reads what those above it define
        of = node.value
        own = isinstance(of, ast.Name) and of.id in ("self", "cls")
        above = isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "super"
        assert own or above, f"line {node.lineno}: {ast.unparse(node)} is private to another module"


ROOMS = sorted(path.parent for path in FILES if path.name == "__init__.py" and path.parent != SOURCE)


@pytest.mark.parametrize("folder", ROOMS, ids=lambda folder: str(folder.relative_to(SOURCE)))
def test_a_room_says_what_is_in_it(folder):
    text = ast.get_docstring(parsed(folder / "__init__.py"))
    assert text, "a room needs a word on what it is for"
    listed = {name for line in text.splitlines() if "   " in line for name in line.split("   ")[0].split(", ")}
    if not listed:
        return  # one that lists names, not modules
    inside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    inside = {name for name in inside if not name.startswith("_")}
    assert listed == inside
