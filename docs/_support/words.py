"""Write the tables of words into the pages for newcomers: ``python docs/_support/words.py``.

A table stands between ``<!-- words: NAME -->`` and ``<!-- end of words -->``; what it holds comes from
`fastlmm_core.support.words`.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastlmm_core.support.words import FORMULAS, LME4, READING, WRITING, Word

DOCS = Path(__file__).parents[1]
TABLES = {
    "lme4": ("lme4 and friends", LME4),
    "writing": ("statsmodels", WRITING),
    "reading": ("statsmodels", READING),
    "formulas": ("R, patsy", FORMULAS),
}
PAGES = ("from-lme4.md", "from-statsmodels.md")
BLOCK = re.compile(r"(?<=<!-- words: )(\w+)( -->\n).*?(?=<!-- end of words -->)", re.DOTALL)


def table(head: str, words: tuple[Word, ...]) -> str:
    """A table in Markdown; with a column of notes where there are some."""
    wide = any(word.note for word in words)
    rows = [[head, "fastlmm_core", *[""] * wide], ["---"] * (2 + wide)]
    rows += [[cell.replace("|", "\\|") for cell in (word.theirs, word.here, *[word.note] * wide)] for word in words]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def filled(text: str) -> str:
    """A page with its tables."""
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}\n{table(*TABLES[found[1]])}\n", text)


if __name__ == "__main__":
    for name in PAGES:
        page = DOCS / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
