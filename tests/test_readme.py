"""The README: its examples run, its commands and links are right, and it promises no more than the tests check."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import fastlmm_core as flc

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("the tests stand without the rest of the tree", allow_module_level=True)
TEXT = README.read_text(encoding="utf-8")
COMMANDS = ["pip install . && python -m fastlmm_core", 'pip install ".[test]" && pytest']


def blocks(language: str) -> list[tuple[int, str]]:
    """Line number and content of the fenced blocks of a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [(TEXT.count("\n", 0, match.start()) + 1, match[1]) for match in found]


def test_the_examples_run():
    examples = blocks("python")
    assert len(examples) >= 3
    names: dict[str, object] = {}
    parser = doctest.DocTestParser()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    report: list[str] = []
    for line, source in examples:
        # on the page an empty line is part of the output, where doctest would see its end
        source = re.sub(r"^$(?=\n(?!>>>|\Z))", "<BLANKLINE>", source, flags=re.MULTILINE)
        test = parser.get_doctest(source, names, README.name, str(README), line)
        assert test.examples, f"the block at line {line} has no example"
        runner.run(test, out=report.append, clear_globs=False)
        names = test.globs  # one page, one session
    assert runner.failures == 0, "".join(report)
    assert runner.tries >= 10


def test_quick_start():
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)
    assert headings[:2] == ["fastlmm_core", "Quick start"]
    # the name, one sentence, and the section
    start = TEXT.index("## Quick start")
    assert re.fullmatch(r"# fastlmm_core\n\n[^\n.]+\.\n\n", TEXT[:start])
    section = TEXT[start : TEXT.index(f"## {headings[2]}")]
    assert [source.strip() for _, source in blocks("sh")] == COMMANDS
    assert section.count("```") == 4


def test_the_picture_is_what_its_script_draws(tmp_path, monkeypatch):
    image = pytest.importorskip("matplotlib.image")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_support"))
    import picture

    picture.draw(tmp_path / "now.png")
    now, shown = (image.imread(path)[..., :3] for path in (tmp_path / "now.png", picture.TARGET))
    assert now.shape == shown.shape
    # fonts and antialiasing differ between versions of matplotlib, the picture does not
    assert abs(now - shown).mean() < 0.02


def test_every_fence_is_one_that_is_tested():
    assert TEXT.count("```") == 2 * (len(blocks("python")) + len(blocks("sh")))


def test_links_and_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"\b(?:tests|bench)/\w+\.py\b", TEXT):
        assert (ROOT / path).exists(), path


def test_attributes_in_the_table_exist():
    result = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.datasets.load("sleepstudy", "dict")).fit()
    table = TEXT[TEXT.index("| coefficients |") : TEXT.index("| tables |")]
    names = re.findall(r"`(\w+)", table)
    assert len(names) > 25
    for name in names:
        assert hasattr(result, name), name


def test_promised_precision_is_what_the_tests_demand():
    source = (ROOT / "tests" / "estimation" / "test_reference.py").read_text(encoding="utf-8")
    demanded = dict(re.findall(r'^    "(\w+)": ([\de-]+),', source, re.MULTILINE))
    for row, name in (
        ("REML criterion, deviance", "criterion"),
        ("coefficients", "beta"),
        ("standard errors", "se"),
        ("variances and covariances of the random effects", "G"),
        ("predicted random effects", "ranef"),
    ):
        promised = re.search(rf"^\| {row} \| ([\de-]+)", TEXT, re.MULTILINE)
        assert promised, row
        assert float(demanded[name]) <= float(promised[1]), row
