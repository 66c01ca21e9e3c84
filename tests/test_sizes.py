"""Functions have few parameters and kernels short bodies: what a reader can hold in mind at once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted((ROOT / "python" / "fastlmm_core").rglob("*.py"))
KERNELS = sorted(path for end in ("pyx", "pxi", "pxd") for path in (ROOT / "fastlmm_core").rglob(f"*.{end}"))

HEADERS = sorted((ROOT / "fastlmm_core").rglob("*.h"))

PARAMETERS = 8
LINES = 80
"""Of a body, blank lines and documentation apart."""

WIDTH = 120
"""Of a line of a kernel; those of Python are told by ruff."""

WIDE = {
    f"lanes/{name}.pxi"
    for name in ("balanced_lines", "closer", "elsewhere", "regular", "responses_with_covariates", "screen", "settling")
} | {"lanes/kernels.pxd"}
"""Files with lines that are still to be folded."""

MODULE = 500
"""Lines of a module of Python, with its texts."""

LONG = {
    "result.py": "methods of a line, each with the text that users read",
    "model.py": "the same",
    "batch_result.py": "the same",
    "inference/many/own_designs.py": "the same",
    "estimation/model.py": "properties of a line, by which a model passes on what design and problem know",
}
"""Modules that may be longer, and why."""

HEAD = re.compile(r"^( *)(?:cdef|cpdef|def)\b(?! class)[^\n=(]*?(\w+)\(", re.M)


def split(text: str) -> list[str]:
    """What commas part, outside brackets."""
    out, depth, word = [], 0, ""
    for sign in re.sub(r"#.*", "", text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            out.append(word)
            word = ""
        else:
            word += sign
    return [part.strip() for part in (*out, word) if part.strip()]


def closing(text: str, at: int) -> int:
    """Place of the bracket that closes the one before `at`."""
    depth = 1
    while depth:
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return at - 1


def functions(text: str) -> Iterator[tuple[str, list[str], int]]:
    """Name, parameters and lines of the body of each function of a Cython file, without its documentation.

    Declarations have no body.
    """
    for found in HEAD.finditer(text):
        end = closing(text, found.end())
        rest = text[end:].split("\n")
        parameters = [part for part in split(text[found.end() : end]) if part not in ("self", "cls", "*", "/")]
        inner, lines, quoted = len(found[1]) + 1, 0, False
        for line in rest[1:]:
            if line.strip() and len(line) - len(line.lstrip()) < inner and not line.lstrip().startswith(")"):
                break
            marks = line.count('"""')
            lines += bool(line.strip()) and not quoted and not marks
            quoted = quoted != (marks == 1)
        yield found[2], parameters, lines


def test_the_parser_of_kernels_sees_what_it_should():
    text = (
        "cdef inline void first(int a, const double[:, ::1] b, (int*) c=f(1, 2),\n           int d) noexcept nogil:\n"
        '    """Do.\n\n    And do.\n    """\n    a = 1\n\n    return\n\n\ncdef class A:\n'
        "    def run(self, *, x):  # a, b\n        pass\n"
        "    cdef int size(self, int n) except -1\n"
    )
    assert [(name, len(own), lines) for name, own, lines in functions(text)] == [
        ("first", 4, 2), ("run", 1, 1), ("size", 1, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(ROOT / "fastlmm_core")))
def test_kernels_are_small(path):
    found = list(functions(path.read_text(encoding="utf-8")))
    assert [(name, len(own)) for name, own, _ in found if len(own) > PARAMETERS] == []
    assert [(name, lines) for name, _, lines in found if lines > LINES] == []


@pytest.mark.parametrize("path", [*KERNELS, *HEADERS], ids=lambda path: str(path.relative_to(ROOT / "fastlmm_core")))
def test_lines_of_kernels_are_not_long(path):
    if str(path.relative_to(ROOT / "fastlmm_core")) in WIDE:
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [(i, len(line)) for i, line in enumerate(lines, start=1) if len(line) > WIDTH] == []


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT / "python" / "fastlmm_core")))
def test_modules_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MODULE or str(path.relative_to(ROOT / "python" / "fastlmm_core")) in LONG


def test_there_are_kernels():
    # an empty list of files, or a pattern that matches nothing, would pass
    assert len(KERNELS) > 60
    assert sum(1 for path in KERNELS for _ in functions(path.read_text(encoding="utf-8"))) > 800


def asked(node: ast.FunctionDef | ast.AsyncFunctionDef, around: str) -> int:
    """Parameters of a function that count.

    Options of what has a name for others do not, where they can only be given by name and the documentation (of the
    class, for what makes it) says what each is or where that stands: such a call reads like a sentence, however many
    there are.
    """
    arguments = node.args
    count = sum(a.arg not in ("self", "cls") for a in (*arguments.posonlyargs, *arguments.args))
    text = f"{ast.get_docstring(node) or ''}\n{around if node.name == '__init__' else ''}"
    public = not node.name.startswith("_") or node.name == "__init__"
    overloaded = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
    elsewhere = re.search(r"\b[Ss]ee `|\bas there\b", text) is not None
    for a in arguments.kwonlyargs:
        count += not (public and (overloaded or elsewhere or re.search(rf"\b{a.arg}\b", text)))
    return count


def test_parameters_are_counted():
    text = """def many(a, b, *, c, d):
    '''Do.

    Parameters
    ----------
    c : int
    '''
def _own(a, *, b): pass
class A:
    "c: a number"
    def __init__(self, a, *, c): pass
"""
    body = ast.parse(text).body
    assert [asked(node, "") for node in body[:2]] == [3, 2]
    assert asked(body[2].body[1], ast.get_docstring(body[2])) == 1


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT / "python" / "fastlmm_core")))
def test_functions_take_few_arguments(path):
    many = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for parent in ast.walk(tree):
        around = (ast.get_docstring(parent) or "") if isinstance(parent, ast.ClassDef) else ""
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and asked(node, around) > PARAMETERS:
                many.append((node.name, node.lineno, asked(node, around)))
    assert many == []
