"""The pages in docs/: their python blocks run, in order, with the output that they show, and their links are right.

A block of ``>>>`` examples is a doctest; any other block is run as it stands. The blocks of a page share their names.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
if not PAGES:
    pytest.skip("the tests stand without the rest of the tree", allow_module_level=True)

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])


def blocks(text: str) -> list[tuple[int, str]]:
    """Line number and content of the python blocks."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 1, match[1]) for match in found]


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a page get."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    report: list[str] = []
    for line, source in blocks(page.read_text(encoding="utf-8")):
        if not source.lstrip().startswith(">>>"):
            exec(compile("\n" * line + source, str(page), "exec"), names)
            continue
        # on the page an empty line is part of the output, where doctest would see its end
        source = re.sub(r"^$(?=\n(?!>>>|\Z))", "<BLANKLINE>", source, flags=re.MULTILINE)
        test = parser.get_doctest(source, names, page.name, str(page), line)
        runner.run(test, out=report.append, clear_globs=False)
        names = test.globs
    assert runner.failures == 0, "".join(report)


@each_page
def test_fences_and_links(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other.read_text(encoding="utf-8")), target
