"""Which tests are chosen for a mistake: lines of statements, names of what a module defines, cheap tests first."""

from __future__ import annotations

import pytest

import selecting

TEXT = '''"""A module."""
LIMIT = 4


def first(x, y=1):
    """A function."""
    total = sum(
        (x,
         y),
    )
    if total > LIMIT:
        total -= 1
    return total


class Both:
    size: int = 3

    @property
    def twice(self):
        return 2 * self.size
'''


@pytest.mark.parametrize(
    ("was", "now", "lines", "names"),
    [
        ("LIMIT = 4", "LIMIT = 5", [2], ["LIMIT"]),
        ("        (x,\n         y),", "        (x,\n         x),", [7, 8, 9, 10], ["total"]),
        ("total > LIMIT", "total >= LIMIT", [11], []),
        ("        total -= 1\n", "        total -= 2\n", [12], []),
        ("total -= 1\n    return total", "total -= 1\n    return x", [13], []),
        ("def first(x, y=1)", "def first(x, y=2)", [6, 7, 8, 9, 10, 11, 12, 13], []),
        ("size: int = 3", "size: int = 4", [17], ["size"]),
        ("    @property\n", "", [21], []),
    ],
)
def test_lines_of_what_changes(was, now, lines, names):
    found, defined = selecting.changed(TEXT, was, now)
    assert set(lines) <= set(found) and defined == names
    assert min(found) >= min(lines) - 1 and max(found) <= max(lines)


def record(tmp_path, seconds, contexts, shared):
    found = selecting.Record.__new__(selecting.Record)
    found.library, found.seconds, found.shared = tmp_path, seconds, shared
    found.files = {"here.py": contexts}
    (tmp_path / "here.py").write_text(TEXT)
    return found


def test_tests_that_run_what_changes(tmp_path):
    seconds = {"a::one": 1.0, "a::two": 0.1, "b::three[0]": 0.3, "b::three[1]": 0.2, "b:fixture": 2.0}
    contexts = {2: {""}, 11: {"a::one", "b:fixture", ""}, 12: {"a::one", "gone"}}
    found = record(tmp_path, seconds, contexts, {"b:fixture": ["b::three[0]", "b::three[1]"]})
    cases = {"b::three[0]", "b::three[1]"}
    assert found.touching("here.py", "total -= 1", "total -= 2") == {"a::one"}
    assert found.touching("here.py", "total > LIMIT", "total < LIMIT") == {"a::one", *cases}
    # a limit matters where it is used
    assert found.touching("here.py", "LIMIT = 4", "LIMIT = 5") == {"a::one", *cases}
    assert found.touching("here.py", "not there", "x") == set()
    assert found.cheapest(["a::one", "a::two", *cases], set()) == ["a::two", "b::three[1]", "b::three[0]", "a::one"]
    assert found.cheapest(["a::one", "a::two", *cases], {"a::one"})[:2] == ["a::one", "a::two"]
    chosen = dict(found.within(["a::two", "a::one", "b::three[0]"], 1.2))
    assert list(chosen) == ["a::two", "b::three[0]"]
    assert chosen["b::three[0]"] == pytest.approx(0.4 + 2 * selecting.COLLECT)
    assert list(found.within(["a::one"], 0.5)) == [("a::one", 1.0 + selecting.COLLECT)]
