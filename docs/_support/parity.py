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
    simulated = re.search(r"([\d.]+) \* .*(?:std_error|len\(draws)$", snippet)
    if simulated:
        return f"{float(simulated[1]):g} Monte Carlo errors"
    constant = re.search(r"=([A-Z_]+)$", snippet)
    if constant:
        found = re.search(rf"^{constant[1]} = (\S+)", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"{constant[1]} has no value")
        return found[1]
    return re.split(r"[=: ]+", snippet)[-1]


DEFAULTS = {"assert_allclose": 1e-7, "approx": 1e-6}
"""Relative tolerances of assertions that name none."""


def _from_assertions(name: str, text: str) -> str:
    """The loosest tolerance in the assertions of a test, or of all of a file, and of the functions that they call.

    Raises
    ------
    LookupError
        For tests without a comparison of numbers.
    """
    tree = ast.parse(text)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    constants = {
        target.id: node.value
        for node in tree.body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    }  # fmt: skip
    wanted = [name] if name else [one for one in functions if one.startswith("test_")]
    seen: set[str] = set()
    found: list[float] = []
    exact = False
    while wanted:
        here = wanted.pop()
        if here in seen:
            continue
        seen.add(here)
        local = constants | {
            target.id: node.value
            for node in ast.walk(functions[here]) if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name)
        }  # fmt: skip
        for node in ast.walk(functions[here]):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in functions and not called.startswith("test_"):
                wanted.append(called)
            exact |= called == "assert_array_equal"
            if called in DEFAULTS:
                given = [k.value for k in node.keywords if k.arg in ("rtol", "atol", "abs", "rel")]
                sizes = [size for value in given for size in _sizes(value, local)]
                if given and not sizes:
                    raise LookupError(f"{name}: {ast.unparse(node)} does not tell its tolerance")
                found.append(max(sizes, default=0.0) or DEFAULTS[called])
            elif called in functions:
                found += [size for k in node.keywords if k.arg in ("rtol", "atol") for size in _sizes(k.value, local)]
    if not found and not exact:
        raise LookupError(f"{name or 'the file'} compares no numbers to a tolerance")
    return f"{max(found):.0e}".replace("e-0", "e-") if found else "exact"


def _sizes(value: ast.AST, constants: dict[str, ast.expr], depth: int = 0) -> list[float]:
    """The numbers that a tolerance may be: a constant, an element of a table, the larger of the branches."""
    if isinstance(value, ast.Constant) and isinstance(value.value, (int, float)):
        return [float(value.value)]
    if isinstance(value, ast.Name) and value.id in constants and depth < 3:
        return _sizes(constants[value.id], constants, depth + 1)
    if isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name):
        table = constants.get(value.value.id)
        if isinstance(table, ast.Dict):
            key = getattr(value.slice, "value", None)
            chosen = [
                v for k, v in zip(table.keys, table.values, strict=True) if key in (None, getattr(k, "value", None))
            ]
            return [size for one in chosen for size in _sizes(one, constants, depth + 1)]
    if isinstance(value, ast.IfExp):
        return _sizes(value.body, constants, depth) + _sizes(value.orelse, constants, depth)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult):
        # relative to a size that is known when the test runs
        left, right = _sizes(value.left, constants, depth), _sizes(value.right, constants, depth)
        return [a * b for a in left for b in right] if left and right else left or right
    if isinstance(value, ast.Tuple):
        return [size for one in value.elts for size in _sizes(one, constants, depth)]
    return []


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
            tolerance = _tolerance(snippet, text) or _from_assertions(name, text)
            out.append(f"| {theirs} | {ours} | {against} | {tolerance} | {shown} |")
    return "\n".join(out) + "\n\n"


def filled(text: str) -> str:
    """The page with its table."""
    return BLOCK.sub(lambda _: table(), text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
