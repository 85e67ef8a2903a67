"""The public names of the package: each is what its home has, and is loaded when it is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import gridveil

ROOT = Path(__file__).parents[2]
SOURCE = ast.parse((ROOT / "client" / "gridveil" / "__init__.py").read_text("utf-8"))
ONLY_METERS_NEED = ("apsw", "numpy", "tenseal", "zstandard")


def typed_homes() -> dict[str, tuple[str, str]]:
    """Public name to module and name there, as type checkers see it."""
    (guarded,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


def test_type_checkers_and_programs_see_the_same_names() -> None:
    homes = typed_homes()
    assert sorted(homes) == sorted(gridveil.__all__)
    assert set(gridveil.__all__) <= set(dir(gridveil))
    for name, (module, own_name) in homes.items():
        wanted = (
            import_module("gridveil.tables")
            if name == "tables"
            else getattr(import_module(module), own_name)
        )
        assert getattr(gridveil, name) is wanted, name


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        gridveil.Nothing  # noqa: B018


def test_importing_the_package_loads_nothing() -> None:
    loaded = run("import sys, gridveil; print(*(n for n in sys.modules if 'gridveil' in n))")
    assert loaded.stdout.split() == ["gridveil"]


# Operators, registrars, auditors and households do without what a meter needs.
OTHERS = sorted(set(gridveil.__all__) - {"Meter", "AsyncMeter", "ReportStatus", "ReportState"})


def test_only_meters_load_what_encrypts_and_stores() -> None:
    hidden = f"import sys; sys.modules |= dict.fromkeys({ONLY_METERS_NEED})"
    program = f"{hidden}\nimport gridveil\nfor name in {OTHERS}: getattr(gridveil, name)"
    assert run(program).stderr == ""


def test_a_meter_without_its_extra_says_what_to_install() -> None:
    ended = run("import sys; sys.modules['apsw'] = None\nfrom gridveil import Meter")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: gridveil.Meter needs apsw;"
        " install it with: pip install 'gridveil[meter]'"
    )


def test_the_package_says_that_it_is_typed() -> None:
    assert files("gridveil").joinpath("py.typed").is_file()


def test_the_documents_name_everything_public_once() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    listed = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    names = [name for cell in listed for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(gridveil.__all__)
