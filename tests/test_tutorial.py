"""The tutorial, typed into a shell from top to bottom: each command does what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
MARK = "--- command"
VARYING = re.compile(r"(?<=one takes )\d+\.\d(?= s)")


@dataclass(frozen=True)
class Shown:
    """A command of the page, and what it prints; ``...`` stands for any lines."""

    command: str
    output: list[str]

    def is_printed(self, printed: str) -> bool:
        lines = (r"(?:.*\n)*" if line == "..." else re.escape(f"{line}\n") for line in self.output)
        return bool(re.fullmatch("".join(lines), printed))


def shown() -> list[Shown]:
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *output = part.splitlines()
            found.append(Shown(command, [VARYING.sub("N", line) for line in output]))
    return found


def typed(commands: list[Shown], folder: Path) -> list[str]:
    """What each of them prints, in one shell with jobs."""
    lines = [f"echo '{MARK}'\n{one.command}\n" for one in commands]
    done = subprocess.run(
        ["/bin/bash", "-c", "set -m; exec 2>&1; trap 'kill $(jobs -p)' EXIT\n" + "".join(lines)],
        cwd=folder,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    return [VARYING.sub("N", part) for part in done.stdout.split(f"{MARK}\n")[1:]]


def test_every_command_of_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "read.py").write_text(program)
    commands = shown()
    for one, printed in zip(commands, typed(commands, tmp_path), strict=True):
        assert one.is_printed(printed), f"$ {one.command}\n{printed}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["read.py", "totals.log"]


def test_what_a_command_prints_is_held_to_every_line() -> None:
    one = Shown("x", ["a", "...", "b"])
    assert one.is_printed("a\nb\n")
    assert one.is_printed("a\nc\nb\n")
    assert not one.is_printed("a\nb\nc\n")
    assert not one.is_printed("b\n")
    assert not Shown("x", []).is_printed("said something\n")
