"""What is installed: a light import, public names that exist, types for all of it."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import fastlmm_core as flc
from sources import imports

PACKAGE = Path(flc.__file__).parent
HEAVY = (
    "pandas",
    "polars",
    "pyarrow",
    "narwhals",
    "formulaic",
    "scipy.stats",
    "scipy.optimize",
    "scipy.special",
    "matplotlib",
    "tqdm",
)
STUBS = PACKAGE / "kernels"
KERNELS = sorted(path.stem for path in STUBS.glob("*.pyi"))


@pytest.mark.parametrize("statement", ["import fastlmm_core", "from fastlmm_core import *"])
def test_import_is_light(statement):
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_a_fit_from_arrays_needs_no_frame_library():
    code = (
        "import sys, numpy as np, fastlmm_core as flc\n"
        "g = np.repeat([f'g{i}' for i in range(10)], 5)\n"
        "flc.LinearMixedModel(np.random.default_rng(1).standard_normal(50), None, None, g).fit().summary()\n"
        "print([name for name in ('pandas', 'polars', 'pyarrow', 'formulaic', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    assert len(set(flc.__all__)) == len(flc.__all__)
    for name in flc.__all__:
        assert getattr(flc, name) is not None
    assert set(flc.__all__) == set(dir(flc))
    with pytest.raises(AttributeError, match="no_such_name"):
        flc.no_such_name  # noqa: B018


def test_public_names_of_every_module():
    seen = 0
    for module in pkgutil.walk_packages([str(PACKAGE)], "fastlmm_core."):
        last = module.name.rpartition(".")[2]
        if last.startswith("_") and last != "__main__":
            continue
        loaded = import_module(module.name)
        seen += 1
        assert loaded.__doc__, module.name
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module.name}.{name}"
        assert module.ispkg or loaded.__all__, f"{module.name} does not say which of its names others may use"
    assert seen > 70


def test_public_names_are_documented():
    for name in flc.__all__:
        if name == "__version__":
            continue
        item = getattr(flc, name)
        assert item.__doc__, name
        if inspect.isclass(item):
            for method, value in vars(item).items():
                if not method.startswith("_") and (callable(value) or isinstance(value, property)):
                    assert value.__doc__, f"{name}.{method}"


def test_types_are_shipped():
    assert (PACKAGE / "py.typed").exists()
    sources = Path(__file__).parents[1] / "fastlmm_core"
    built = {name for path in sources.glob("*/meson.build") for name in re.findall(r"'(_[a-z]+)':", path.read_text())}
    lanes = {f"_lanes_{variant}" for variant in ("base", "avx2", "avx512")}
    assert len(built) > 10
    # faster variants are built where the processor's family has them, and none with kernels that check every index
    assert built | {"_lanes_base"} <= set(KERNELS) <= built | lanes


def test_compiled_kernels_are_imported_by_the_facade_only():
    for path in PACKAGE.rglob("*.py"):
        if path.parent == STUBS:
            continue
        for node in imports(path):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module or ''}.{name}" for name in names]
            for name in names:
                assert not set(name.split(".")) & set(KERNELS), f"{path.name}:{node.lineno} imports {name}"


def test_import_loads_what_every_model_needs():
    code = "import fastlmm_core, sys; print(*[n for n in sys.modules if n.startswith('fastlmm_core.kernels.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.replace("fastlmm_core.kernels.", "").split() if name.startswith("_")}
    # views of arrays are shared by the kernels, and nobody else's; all lanes are translated under one name
    assert loaded <= {*KERNELS, "_views", "_lanes"}
    assert not loaded & {"_levels", "_ordering", "_nested", "_crossed", "_deletion"}
    assert len([name for name in loaded if name.startswith("_lanes_")]) == 1


def signatures(body):
    """Parameter names of the functions of a stub and of the methods of its classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield (node.name,), [a.arg for a in node.args.args]
        elif isinstance(node, ast.ClassDef):
            for (method,), parameters in signatures(node.body):
                yield (node.name, method), parameters


@pytest.mark.parametrize("name", KERNELS)
def test_stubs_agree_with_the_kernels(name):
    if name.startswith("_lanes_") and name != "_lanes_base":
        pytest.skip("the CPU need not run it")
    module = import_module(f"fastlmm_core.kernels.{name}")
    stubbed = set()
    for path, expected in signatures(ast.parse((STUBS / f"{name}.pyi").read_text(encoding="utf-8")).body):
        item = module
        for part in path:
            item = getattr(item, part)
        stubbed.add(path[0])
        if path[-1] == "__init__":
            continue  # extension types have no signature for it
        if not callable(item):
            assert expected == ["self"], f"{'.'.join(path)} is an attribute"
            continue
        assert list(inspect.signature(item).parameters) == expected, ".".join(path)
    public = {
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    assert public <= stubbed, f"not in the stub: {public - stubbed}"


def test_one_version_everywhere():
    try:
        assert importlib.metadata.version("fastlmm-core") == flc.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is used without being installed")


def test_one_version_in_the_sources():
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == flc.__version__
    assert f"version: '{flc.__version__}'" in (root / "meson.build").read_text(encoding="utf-8")
