"""The documentation site.  With the package and its extra ``docs`` installed, from the root of the repository:

    sphinx-build -W --keep-going -b html docs docs/_build/html

Every page is executed while it is built, and what fails or warns stops the build.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import fastlmm_core

HERE = Path(__file__).parent

# what the pages share; their kernels inherit the path
sys.path.insert(0, str(HERE / "_support"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE / "_support"), os.environ.get("PYTHONPATH")]))
# one thread for BLAS: small matrices, and a build that gives the same digits everywhere
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import kernel  # noqa: E402
from members import headings  # noqa: E402

project = "fastlmm_core"
author = "the authors of fastlmm_core"
project_copyright = author
version = release = fastlmm_core.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "mathml",
    "numpydoc",
]
exclude_patterns = ["_build", "_support", "_templates"]
templates_path = ["_templates"]
default_role = "py:obj"

# ---- pages -------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "inline"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_execution_show_tb = True
# expressions, not only names, may stand in the text
nb_eval_name_regex = r"^.+$"
nb_merge_streams = True
suppress_warnings = ["mystnb.mime_priority"]

# ---- reference ---------------------------------------------------------------------------------

autosummary_generate = True
autosummary_context = {"headings": headings()}  # of the page of a fit
autodoc_typehints = "none"
autodoc_member_order = "bysource"  # where members stand by what they are for
numpydoc_show_class_members = False
numpydoc_xref_param_type = False


def escape_pipes(app, what, name, obj, options, lines):
    """``|x|`` in a docstring is an absolute value and ``x | g`` a bar, not a substitution."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``|`.*?`)", line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[i] = "".join(parts)


def results_are_not_called(app, what, name, obj, options, signature, returns):
    """No signature for classes whose objects come from functions."""
    if what == "class" and obj.__name__ not in ("LinearMixedModel", "RandomTerm"):
        return "", returns
    return None


def setup(app):
    kernel.share()
    app.connect("build-finished", kernel.end)
    app.connect("autodoc-process-docstring", escape_pipes, priority=100)
    app.connect("autodoc-process-signature", results_are_not_called)


# ---- look --------------------------------------------------------------------------------------

html_theme = "furo"
html_title = "fastlmm_core"
html_static_path = ["_static"]
html_extra_path = ["llms.txt"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
