"""The pages in docs/: what they execute runs, with the output that they show, and their links are right.

Pages are of two kinds.  In one a block of ``>>>`` examples is a doctest; any other python block is run as it stands.
The other (``file_format: mystnb``) is executed when the site is built, which needs the extra ``docs``; here its cells
and the expressions in its text are run without that.  The blocks of a page share their names.
"""

from __future__ import annotations

import doctest
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import fastlmm_core as flc

DOCS = Path(__file__).parent.parent / "docs"
ALL = {
    str(page.relative_to(DOCS)): page.read_text(encoding="utf-8")
    for page in sorted(DOCS.glob("**/*.md"))
    if not {"_build", "jupyter_execute"} & set(page.relative_to(DOCS).parts)
}
if not ALL:
    pytest.skip("the tests stand without the rest of the tree", allow_module_level=True)

NOTEBOOKS = [name for name in ALL if ALL[name].startswith("---\nfile_format: mystnb\n")]


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """Line number and content of the python blocks."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]


def cells(text: str) -> list[tuple[int, str, bool]]:
    """Line number and source of what a notebook executes, and whether it is an expression."""
    found = re.finditer(
        r"^```\{code-cell\}[^\n]*\n(?::[^\n]*\n)*(?P<cell>.*?)^```$|\{eval\}`(?P<inline>[^`]+)`",
        text, re.MULTILINE | re.DOTALL,
    )  # fmt: skip
    out = []
    for match in found:
        inline = match["inline"]
        start = match.start("cell" if inline is None else "inline")
        source = match["cell"] if inline is None else inline
        out.append((text.count("\n", 0, start), source, inline is not None))
    return out


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a page get, and those that are written out."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)
    return {*re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)} | {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", [name for name in ALL if name not in NOTEBOOKS])
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    report: list[str] = []
    for line, source in blocks(ALL[page]):
        if not source.lstrip().startswith(">>>"):
            exec(compile("\n" * line + source, page, "exec"), names)
            continue
        # on the page an empty line is part of the output, where doctest would see its end
        source = re.sub(r"^$(?=\n(?!>>>|\Z))", "<BLANKLINE>", source, flags=re.MULTILINE)
        test = parser.get_doctest(source, names, page, str(DOCS / page), line)
        runner.run(test, out=report.append, clear_globs=False)
        names = test.globs
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_the_cells_run(page, monkeypatch, capsys):
    if ".style." in ALL[page]:
        pytest.importorskip("jinja2")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir((DOCS / page).parent)
    monkeypatch.setattr(sys, "path", [str(DOCS / "_support"), *sys.path])
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for line, source, expression in cells(ALL[page]):
            code = compile("\n" * line + source, page, "eval" if expression else "exec")
            if expression:
                shown = repr(eval(code, names))
                assert "nan" not in shown, f"line {line + 1}: {source}"
            else:
                exec(code, names)
    finally:
        pyplot.close("all")


@pytest.mark.parametrize("page", ALL)
def test_fences_and_links(page):
    text = ALL[page]
    assert text.count("```") % 2 == 0
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = ((DOCS / page).parent / path).resolve() if path else DOCS / page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other.read_text(encoding="utf-8")), target


def formulas(text: str) -> list[tuple[str, bool]]:
    """Formulas of a page, each with whether it stands by itself."""
    found = [(match[1], True) for match in re.finditer(r"```\{math\}\n(?::.*\n)*(.*?)```", text, re.DOTALL)]
    text = re.sub(r"`[^`\n]*`", "", without_code(text))
    found += [(match[1], True) for match in re.finditer(r"\$\$(.*?)\$\$", text, re.DOTALL)]
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return found + [(match[1], False) for match in re.finditer(r"(?<![\\$])\$([^$\n]+(?:\n[^$\n]+)?)\$", text)]


WIDE = 95
"""Columns of code that the site has room for."""


@pytest.mark.parametrize("page", ALL)
def test_code_fits(page):
    cells = re.finditer(r"^```\{code-cell\}[^\n]*\n(?P<tags>(?::[^\n]*\n)*)(?P<code>.*?)^```$", ALL[page], re.M | re.S)
    shown = [line for cell in cells if "remove-input" not in cell["tags"] for line in cell["code"].splitlines()]
    shown += [line for line in ALL[page].splitlines() if line.startswith((">>> ", "... "))]
    assert [line for line in shown if len(line) > WIDE] == []


def test_formulas_are_drawn_without_a_script(monkeypatch):
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(DOCS / "_support"))
    from mathml import mathml

    every = [formula for text in ALL.values() for formula in formulas(text)]
    assert len(every) > 300
    for latex, block in every:
        assert mathml(latex, block).startswith("<math")
    with pytest.raises(ValueError, match="unknown"):
        mathml(r"\unknown{x}", False)


def test_the_table_of_parity_is_made_from_the_tests(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_support"))
    import parity

    assert parity.filled(ALL["parity.md"]) == ALL["parity.md"], "run python docs/_support/parity.py"
    with pytest.raises(LookupError, match="there is no test_nothing"):
        parity._test("test_docs::nothing")
    with pytest.raises(LookupError, match="stands nowhere"):
        parity._tolerance("abs=1e-99", "")
    said = "A = 1e-5\ndef helped(): assert x == approx(1, abs=3 * A)\n"
    said += "def test_a(): helped(); assert y == approx(2)\ndef test_b(): pass"
    assert parity._from_assertions("test_a", said) == "3e-5"
    with pytest.raises(LookupError, match="compares no numbers"):
        parity._from_assertions("test_b", said)


def test_every_page_has_its_place():
    listed = {
        line.strip() + ".md"
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", ALL["index.md"], re.DOTALL)
        for line in tree.splitlines()
        if line and not line.startswith(":")
    }
    assert listed | {"index.md"} == set(ALL)


def test_every_public_name_is_in_the_reference():
    import fastlmm_core
    from fastlmm_core import datasets, plots

    listed = set(re.findall(r"^   ([\w.]+)$", ALL["api.md"], re.MULTILINE))
    modules = {"datasets": datasets, "plots": plots}
    wanted = {name for name in fastlmm_core.__all__ if not name.startswith("__") and name not in modules}
    wanted |= {f"{module}.{name}" for module, of in modules.items() for name in of.__all__}
    assert wanted <= listed


def test_the_reference_names_what_exists():
    names = re.findall(r"^   ([A-Za-z_][\w.]*)$", ALL["api.md"], re.MULTILINE)
    assert len(names) > 40
    for name in names:
        pkgutil.resolve_name(f"fastlmm_core.{name}")


INTERNALS = {"again", "engine", "marginal_rest", "nu", "once", "problem", "relative_covariance",
             "require_estimates", "require_exact", "rest", "way"}  # fmt: skip
"""Members of a fit that are for the library itself."""


def test_the_page_of_a_fit_has_every_member_under_a_heading(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_support"))
    import members

    named = [name for _, listed in members.headings() for _, name in listed]
    assert len(named) == len(set(named))
    assert set(named) == {name for name in dir(flc.LMMResult) if not name.startswith("_")} - INTERNALS - {"stated"}
