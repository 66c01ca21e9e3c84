"""Write the table of what other packages have and which test shows it here: ``python docs/_support/parity.py``.

A row of ``parity.txt`` has a test, and a piece of its file in which the tolerance stands; the table is made of these,
and a test of the page makes it again, so that a row cannot outlive what it rests on.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
TESTS = DOCS.parent / "tests"
PAGE = DOCS / "parity.md"
BLOCK = re.compile(r"(?<=<!-- parity -->\n).*?(?=<!-- end of parity -->)", re.DOTALL)

LIST = Path(__file__).with_name("parity.txt")


def rows() -> dict[str, list[list[str]]]:
    """The list by package: there, here, held against, test, where its tolerance stands."""
    out: dict[str, list[list[str]]] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found = out.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            cells = [cell.strip() for cell in line.split(" ;")]
            found.append(cells + [""] * (5 - len(cells)))
    return out


def _test(written: str) -> tuple[str, str, str]:
    """File, name as pytest has it, and source of a test; of a whole file without a name.

    Raises
    ------
    LookupError
        For a file or a test that is not there.
    """
    file, _, name = written.partition("::")
    path = TESTS / f"{file}.py"
    if not path.exists():
        raise LookupError(f"there is no {path}")
    text = path.read_text(encoding="utf-8")
    if not name:
        return f"tests/{file}.py", "", text
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == f"test_{name}":
            return f"tests/{file}.py", node.name, text
    raise LookupError(f"there is no test_{name} in {path}")


def _tolerance(snippet: str, text: str) -> str:
    """The number at the end of a piece of a file, or that of a constant that it names.

    Raises
    ------
    LookupError
        For a piece that the file does not have.
    """
    if not snippet:
        return ""
    if snippet not in text:
        raise LookupError(f"{snippet!r} stands nowhere")
    constant = re.search(r"=([A-Z_]+)$", snippet)
    if constant:
        found = re.search(rf"^{constant[1]} = (\S+)", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"{constant[1]} has no value")
        return found[1]
    return re.split(r"[=: ]+", snippet)[-1]


def table() -> str:
    """All rows in Markdown."""
    out = []
    for package, listed in rows().items():
        out += [f"\n## {package}\n", "| there | here | held against | to | test |", "|---|---|---|---|---|"]
        for theirs, ours, against, test, snippet in listed:
            theirs, ours = theirs.replace("|", "\\|"), ours.replace("|", "\\|")
            if not test:
                out.append(f"| {theirs} | **{ours}** | | | |")
                continue
            file, name, text = _test(test)
            shown = f"`{file}`" + (f" `{name}`" if name else "")
            tolerance = _tolerance(snippet, text) or "see there"
            out.append(f"| {theirs} | {ours} | {against} | {tolerance} | {shown} |")
    return "\n".join(out) + "\n\n"


def filled(text: str) -> str:
    """The page with its table."""
    return BLOCK.sub(lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
