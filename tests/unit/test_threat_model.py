"""docs/threat-model.md names tests for every claim, and they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
CLAIMS = re.findall(r"^\| ([A-Z]\d+) \|", TEXT, re.MULTILINE)
SHOWN_BY = dict(re.findall(r"^- ([A-Z]\d+): (.+)$", TEXT, re.MULTILINE))
NAMED = re.findall(r"`(tests/[\w/.]+?)(?:::(\w+))?`", TEXT)


@cache
def functions(path: str) -> frozenset[str]:
    """Every function of a file; none if there is no such file."""
    file = ROOT / path
    tree = ast.parse(file.read_text("utf-8")) if file.is_file() else ast.Module([], [])
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_claim_has_its_tests_and_no_test_is_listed_for_none() -> None:
    assert len(CLAIMS) == len(set(CLAIMS)) >= 24
    assert set(SHOWN_BY) == set(CLAIMS)
    assert all(re.search(r"`tests/[\w/.]+\.py", shown) for shown in SHOWN_BY.values())


def test_every_test_that_is_named_exists() -> None:
    assert NAMED
    missing = [
        f"{path}::{name}"
        for path, name in NAMED
        if path.endswith(".py") and (name not in functions(path) if name else not functions(path))
    ]
    assert not missing
