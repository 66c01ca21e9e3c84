"""Texts name what exists: functions, modules and files, in docstrings and comments and on the page of contributors."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted((ROOT / "python" / "fastlmm_core").rglob("*.py"))
KERNELS = sorted(path for end in ("pyx", "pxi", "pxd", "h") for path in (ROOT / "fastlmm_core").rglob(f"*.{end}"))

FOREIGN = {"coverage.py", "cython", "norms2", "stacklevel"}
"""Other libraries, and words of theirs, that texts name."""

WORD = re.compile(r"[A-Za-z_]\w*")
NAMED = re.compile(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)")
FILE = re.compile(r"\b(?:[\w-]+/)*[\w-]+\.(?:py|pyx|pxi|pxd|pyi|h)\b")


def split(path: Path) -> tuple[list[str], set[str]]:
    """The texts of a file, docstrings and comments, and the words of its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        pattern = r"/\*.*?\*/" if path.suffix == ".h" else r'""".*?"""|#[^\n]*'
        texts = re.findall(pattern, text, re.S)
        return texts, set(WORD.findall(re.sub(pattern, "", text, flags=re.S)))
    texts, words = [], set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            texts.append(token.string)
        elif token.type == tokenize.NAME:
            words.add(token.string)
        elif token.type == tokenize.STRING and " " not in token.string:
            words |= set(WORD.findall(token.string))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts.append(node.value.value)
    return texts, words


@cache
def known() -> set[str]:
    """Words of all code, and names of all modules and folders."""
    words = set(FOREIGN)
    for path in (*PYTHON, *KERNELS):
        words |= split(path)[1] | {path.stem, path.parent.name}
    return words | {path.stem for path in (ROOT / "python").rglob("*.pyi")}


@cache
def files() -> list[str]:
    return [f"/{p.relative_to(ROOT)}" for top in ("fastlmm_core", "python", "tests", "docs", "bench")
            for p in (ROOT / top).rglob("*") if p.suffix in (".py", ".pyx", ".pxi", ".pxd", ".pyi", ".h")]  # fmt: skip


def unknown(texts: list[str]) -> list[str]:
    """What texts name that does not exist."""
    out = []
    for text in texts:
        out += [name for name in NAMED.findall(text) if not known() >= set(name.split("."))]
        out += [name for name in FILE.findall(text) if not any(path.endswith(f"/{name}") for path in files())]
    return [name for name in out if name not in FOREIGN]


def test_texts_are_read_as_they_should_be():
    assert unknown(["see `condition_factors`, `choose.condition_factors` and lanes/profile.pxi"]) == []
    assert unknown(["`no_such_name`", "`choose.no_such_name`", "see no_such_file.py"]) == [
        "no_such_name", "choose.no_such_name", "no_such_file.py",
    ]  # fmt: skip
    # a formula in backticks names nothing
    assert unknown(["`y ~ x + (x | g)`"]) == []


@pytest.mark.parametrize("path", [*PYTHON, *KERNELS], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_texts_name_exists(path):
    assert unknown(split(path)[0]) == []


def test_the_walks_of_contributors_lead_somewhere():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"`([\w/]+\.(?:py|pyx|pxi))`\s+\(`(\w+)`\)", text)
    assert len(steps) >= 6
    for place, name in steps:
        path = ROOT / place if (ROOT / place).exists() else ROOT / "python" / "fastlmm_core" / place
        assert re.search(rf"\b(?:def|class) {name}\b", path.read_text(encoding="utf-8")), (place, name)
    places = [name for name in FILE.findall(text) if name not in FOREIGN]
    assert [name for name in places if not any(path.endswith(f"/{name}") for path in files())] == []
