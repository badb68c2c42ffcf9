"""The package as a whole: what it imports, its stub, its version."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import simct_align
from simct_align import _native

ROOT = Path(__file__).resolve().parent.parent


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import simct_align; "
        "print(time.process_time() - start, *sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    runs = [_python(code).split() for _ in range(5)]
    assert all(len(run) == 1 for run in runs), f"imported as well: {runs[0][1:]}"
    assert min(float(seconds) for (seconds,) in runs) < 0.3


def test_public_names_are_there() -> None:
    for name in simct_align.__all__:
        assert getattr(simct_align, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Alinger'"):
        simct_align.Alinger  # noqa: B018


def test_one_source_of_version() -> None:
    versions = re.findall(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert versions == [simct_align.__version__]
    cited = re.findall(r"^version: (.*)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == versions
    changes = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changes[:1] == versions
    # The fuzz targets are a workspace of their own, and `make fuzz-rust` holds their lock file.
    locked = (ROOT / "fuzz" / "Cargo.lock").read_text()
    assert re.findall(r'^name = "simct-align"\nversion = "(.*)"', locked, re.MULTILINE) == versions


def _stub_signatures() -> dict[str, list[str]]:
    """Every callable of the stub with its parameter names."""
    tree = ast.parse((ROOT / "python/simct_align/_native.pyi").read_text())
    found: dict[str, list[str]] = {}

    def parameters(function: ast.FunctionDef) -> list[str]:
        arguments = function.args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]

    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    found[f"{node.name}.{member.name}"] = parameters(member)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
    return {name: names for name, names in found.items() if not re.match("_[^_]", name)}


def _native_signatures() -> dict[str, list[str] | None]:
    """Every public name of the module; `None` where it has no signature to compare."""
    found: dict[str, list[str] | None] = {}
    for name, value in vars(_native).items():
        if name.startswith("__") and name != "__version__":
            continue
        if inspect.isclass(value) and not issubclass(value, Exception):
            found[name] = None
            if "__new__" in vars(value):
                found[f"{name}.__new__"] = ["cls", *inspect.signature(value).parameters]
            for member, attribute in vars(value).items():
                if member == "__len__" or not member.startswith("__"):
                    is_call = callable(attribute) or isinstance(attribute, staticmethod)
                    function = getattr(value, member)
                    found[f"{name}.{member}"] = (
                        list(inspect.signature(function).parameters) if is_call else None
                    )
        elif callable(value) and not inspect.isclass(value):
            found[name] = list(inspect.signature(value).parameters)
        else:
            found[name] = None
    return found


def test_stub_matches_the_module() -> None:
    stub, module = _stub_signatures(), _native_signatures()
    assert set(stub) == set(module)
    for name, parameters in module.items():
        if parameters is not None:
            assert stub[name] == parameters, name
