"""All mistakes in kernels in one build, each behind a number: what `mutants.py --woven` compiles.

The statements that an entry changes become

    if WOVEN == 12:
        what the entry says
    else:
        what stands there

where WOVEN is a number of C that each compiled module reads from the environment when it is loaded.  A statement with
a header (`if`, `for`, ...) is taken whole; statements that several entries change have a branch for each.  What is no
statement of a function (declarations, signatures, headers of C) cannot be woven.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass

VARIABLE = "FASTLMM_WOVEN"
"""The environment variable that chooses a mistake by its number."""
HEADER = f"""#include <stdlib.h>

static int WOVEN = -1;

__attribute__((constructor)) static void read_woven(void) {{
    const char *chosen = getenv("{VARIABLE}");
    WOVEN = chosen ? atoi(chosen) : -1;
}}
"""
DECLARED = 'cdef extern from "woven.h" nogil:\n    int WOVEN_{name} "WOVEN"\n\n'
"""One name per file, since files are included in others."""
GOES_ON = re.compile(r"(elif|else|except|finally)\b")
FUNCTION = re.compile(r"(async +def|def|cdef|cpdef)\b(?! +(class|extern|struct|union|enum|packed|cppclass|public))")
NO_STATEMENT = re.compile(r"(cdef|cpdef|ctypedef|cimport|import|from|include|global|nonlocal|def|class|DEF|@)\b")


@dataclass(frozen=True)
class Line:
    """A logical line: a statement without a body, or the header of one with a body."""

    text: str
    indent: int

    @property
    def words(self) -> str:
        return self.text[self.indent :]


def logical_lines(text: str) -> list[Line]:
    """The text in logical lines; comments and empty lines are left out."""
    rows = text.splitlines(keepends=True)
    lines: list[Line] = []
    begin = 0
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            whole = "".join(rows[begin - 1 : token.end[0]])
            lines.append(Line(whole if whole.endswith("\n") else whole + "\n", len(whole) - len(whole.lstrip(" "))))
            begin = 0
        elif not begin and token.type not in skipped:
            begin = token.start[0]
    return lines


def common(one: list[Line], other: list[Line]) -> int:
    """How many lines at the beginning are the same."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def whole(lines: list[Line], begin: int, end: int) -> tuple[int, int]:
    """The range widened to statements with all that belongs to them, at one indentation."""
    end = max(end, begin + 1)
    while True:
        indent = min(line.indent for line in lines[begin:end])
        first, last = begin, end
        while lines[first].indent > indent or GOES_ON.match(lines[first].words):
            first -= 1
        while last < len(lines) and (
            lines[last].indent > indent or (lines[last].indent == indent and GOES_ON.match(lines[last].words))
        ):
            last += 1
        if (first, last) == (begin, end):
            return begin, end
        begin, end = first, last


def in_function(lines: list[Line], at: int) -> bool:
    """Whether a line stands in the body of a function."""
    indent = lines[at].indent
    for line in reversed(lines[:at]):
        if line.indent < indent:
            indent = line.indent
            if FUNCTION.match(line.words):
                return "(" in line.text
    return False


def moved(lines: Iterable[Line], less: int, more: int) -> str:
    """Statements at another indentation; a first row that is not in line is not moved."""
    out = []
    for line in lines:
        rows = line.text.splitlines(keepends=True)
        out += [" " * more + row[less:] if row[:less].isspace() or not less else row for row in rows]
    return "".join(out)


def weave(text: str, changes: dict[int, tuple[str, str]], name: str) -> tuple[str, set[int]]:
    """The text with all changes (what was, what is now) that can be woven into it, and their numbers."""
    lines = logical_lines(text)
    spans: dict[int, tuple[int, int]] = {}
    mutated: dict[int, list[Line]] = {}
    for number, (was, now) in changes.items():
        try:
            new = logical_lines(text.replace(was, now))
        except (tokenize.TokenError, IndentationError):
            continue
        before = common(lines, new)
        after = min(common(lines[::-1], new[::-1]), len(lines) - before, len(new) - before)
        if before == len(lines) == len(new):
            continue
        spans[number] = whole(lines, min(before, len(lines) - after - 1), len(lines) - after)
        mutated[number] = new
    groups: list[tuple[int, int, list[int]]] = []
    for number in sorted(spans, key=lambda n: (spans[n][0], -spans[n][1])):
        begin, end = spans[number]
        if groups and begin < groups[-1][1]:
            first, last, numbers = groups.pop()
            groups.append((*whole(lines, first, max(last, end)), [*numbers, number]))
        else:
            groups.append((begin, end, [number]))
    out, woven = list(lines), set()
    for begin, end, numbers in reversed(groups):
        if not in_function(lines, begin) or any(NO_STATEMENT.match(line.words) for line in lines[begin:end]):
            continue
        indent = lines[begin].indent
        branches = ""
        for number in numbers:
            branch = mutated[number][begin : end + len(mutated[number]) - len(lines)]
            if any(NO_STATEMENT.match(line.words) for line in branch):
                continue
            branches += f"{' ' * indent}{'elif' if branches else 'if'} WOVEN_{name} == {number}:\n"
            branches += moved(branch, indent, indent + 4) or " " * (indent + 4) + "pass\n"
            woven.add(number)
        if branches:
            last = f"{' ' * indent}else:\n" + moved(lines[begin:end], indent, indent + 4)
            out[begin:end] = [Line(branches + last, indent)]
    begin = int(out[0].words.startswith(('"""', 'r"""')))
    out.insert(begin, Line(DECLARED.format(name=name), 0))
    return "".join(line.text for line in out), woven
