"""What a mutant is: Gridveil with one protection taken out, and the attacks that must then succeed.

Each edit names the text it replaces; a text that is no longer there exactly once fails the test
that uses it, so that no mutant turns into a copy of the original unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.adversary.city import RELEASED

PROTOCOL = "client/gridveil/protocol"
KEYHOLDER = "services/gridveil_services/keyholder"


@dataclass(frozen=True)
class Edit:
    """One text of one file, and what stands there instead."""

    path: str
    """Below the repository's root."""
    found: str
    put: str

    def apply(self, root: Path) -> None:
        """Make the edit in a copy."""
        file = root / self.path
        source = file.read_text("utf-8")
        assert source.count(self.found) == 1, f"{self.path} does not hold {self.found!r} once"
        file.write_text(source.replace(self.found, self.put), "utf-8")


@dataclass(frozen=True)
class Attacks:
    """Some tests of one file."""

    file: str
    """In this folder, or below the repository's root."""
    select: str
    """As in pytest's -k."""
    on_redis: bool = False
    """Whether they start a Redis."""

    @property
    def path(self) -> str:
        """Below the repository's root."""
        return self.file if "/" in self.file else f"tests/adversary/{self.file}"


@dataclass(frozen=True)
class Mutant:
    """A protection taken out, and who should notice."""

    edits: tuple[Edit, ...]
    caught_by: Attacks
    shows: str = RELEASED
    """What every test that fails says."""


def mutant(
    path: str, found: str, put: str, file: str, select: str, shows: str = RELEASED
) -> Mutant:
    """A mutant of one edit."""
    return Mutant((Edit(path, found, put),), Attacks(file, select), shows)
