"""Results as HTML, Markdown and LaTeX: read back cell by cell."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import fastlmm_core as flc
import fits
from fastlmm_core.support.display import Cells, Line, Shown
from fastlmm_core.support.formats import latex_text, markdown_text


class Page(Shown):
    def __init__(self, *blocks):
        self.blocks = blocks

    def _shown(self):
        return self.blocks


NASTY = Cells(
    ["", "a|b", "95% CI", ""],
    [["x_1 & y", "-1.5", "<0.001", "2.5e-07"], ["~{z}^2\\", "(0.31)", "[-1.2, 3.4]", "nan"]],
)


def test_markdown_is_read_back():
    page = Page(Line("T*", "title"), Line("y ~ x | g", "code"), NASTY, "a_note")
    lines = page.as_markdown().splitlines()
    assert lines[0] == r"**T\***" and lines[2] == "`y ~ x | g`" and lines[-1] == r"a\_note"
    table = lines[4:8]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert all(len(row) == 4 for row in cells)
    assert cells[1] == [":---", "---:", "---:", "---:"]
    plain = [re.sub(r"\\(.)", r"\1", c) for c in cells[2]]
    assert plain == NASTY.rows[0]


def test_latex_cells():
    lines = Page(NASTY).as_latex().splitlines()
    assert lines[0] == r"\noindent\begin{tabular}{lrrr}"
    assert lines[2] == r" & a\textbar{}b & \multicolumn{2}{c}{95\% CI} \\"
    assert lines[4] == r"x\_1 \& y & $-1.5$ & $<0.001$ & $2.5 \times 10^{-7}$ \\"
    assert lines[5] == r"\textasciitilde{}\{z\}\textasciicircum{}2\textbackslash{} & (0.31) & [$-1.2$, 3.4] & nan \\"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    ruled = Page(Cells(None, [["a", "1"], ["b", "2"]], 1, (1,))).as_latex().splitlines()
    assert ruled[1:5] == [r"\toprule", r"a & 1 \\", r"\midrule", r"b & 2 \\"]


def test_parts_in_latex_stand_apart_and_flush_left():
    parts = Page(Line("T", "title"), NASTY, NASTY, "note").as_latex().split("\n\n\\smallskip\n")
    assert len(parts) == 4 and all(part.startswith((r"\noindent", r"\par\noindent")) for part in parts)


@pytest.mark.parametrize("text", ["plain", "50 % & more", "a_b^c", "{x}", "C:\\dir", "#1 $2", "a < b > c | d ~"])
def test_escapes(text):
    assert re.sub(r"\\(.)", r"\1", markdown_text(text)) == text
    inverse = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
        r"\textgreater{}": ">", r"\textbar{}": "|",
    }  # fmt: skip
    found = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]", lambda m: inverse.get(m[0], m[0][1:]), latex_text(text))
    assert found == text


# ---- every result that prints ------------------------------------------------------------------------


class _Reader(HTMLParser):
    """Rows of cells of all tables, and whether tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.rows = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def results():
    cake = fits.fitted("angle ~ recipe * temperature + (1 | recipe:replicate)", "cake")
    sleep = fits.fitted(fits.SLEEPSTUDY, "sleepstudy")
    smaller = fits.fitted("Reaction ~ Days + (1 | Subject)", "sleepstudy")
    pooled = flc.pool([sleep, sleep])
    yield from (sleep.summary(), cake.anova(), cake.emmeans("recipe", contrasts="pairwise"), cake.test(np.eye(18)[1:3]))
    yield from (cake.emmeans("recipe").joint_test(), flc.compare(smaller, sleep), flc.table(smaller, sleep), pooled)
    yield from (flc.pool([cake, cake]).emmeans("recipe", contrasts="pairwise"), sleep.random_effect_test())


@pytest.mark.parametrize("result", list(results()), ids=lambda r: type(r).__name__)
def test_all_forms_hold_the_same_cells(result):
    reader = _Reader()
    reader.feed(result.as_html())
    reader.close()
    assert reader.open == [] and result._repr_html_() == result.as_html()
    assert str(result) == result.as_text() == repr(result)
    latex = [line for line in result.as_latex().splitlines() if line.endswith(r" \\")]
    spans = [sum(int(n) - 1 for n in re.findall(r"multicolumn\{(\d)", line)) for line in latex]
    widths = [len(re.split(r"(?<!\\)&", line)) + extra for line, extra in zip(latex, spans, strict=True)]
    assert widths == [len(row) for row in reader.rows]
    begins = [line.count("{") - line.count(r"\{") for line in result.as_latex().splitlines()]
    ends = [line.count("}") - line.count(r"\}") for line in result.as_latex().splitlines()]
    assert begins == ends
    table = [line for line in result.as_markdown().splitlines() if line.startswith("|") and "---" not in line]
    cells = [[re.sub(r"\\(.)", r"\1", c.strip()) for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    # a table without a heading has an empty one in Markdown
    assert [row for row in cells if any(row)] == [row for row in reader.rows if any(row)]
    assert reader.rows
