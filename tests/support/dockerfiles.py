"""A Dockerfile as data: strict about what deploy/Dockerfile uses, and ignorant of all else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_KNOWN = frozenset(
    [
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "RUN",
        "USER",
        "WORKDIR",
    ]
)


@dataclass(frozen=True)
class Stage:
    """One build stage: its own instructions, in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """The arguments of every such instruction."""
        return [arguments for word, arguments in self.instructions if word == keyword]

    def only(self, keyword: str) -> str:
        """The arguments of the one such instruction."""
        (found,) = self.all(keyword)
        return found

    def command(self, keyword: str) -> list[str]:
        """The words of an ENTRYPOINT or CMD, which must be in exec form."""
        return exec_form(self.only(keyword))

    @property
    def health_command(self) -> list[str]:
        """The words of the HEALTHCHECK."""
        options, _, command = self.only("HEALTHCHECK").partition("CMD ")
        assert all(re.fullmatch(r"--[a-z-]+=\d+s", option) for option in options.split())
        return exec_form(command)

    @property
    def whole_command(self) -> list[str]:
        """What a container runs that is given no arguments."""
        return [*self.command("ENTRYPOINT"), *self.command("CMD")]


def exec_form(text: str) -> list[str]:
    """The words of ``["a", "b"]``; the form that needs no shell."""
    words = json.loads(text)
    assert words
    assert all(isinstance(word, str) for word in words)
    return list(words)


def stages(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """All stages by name."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in path.read_text("utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, arguments = line.partition(" ")
        assert word in _KNOWN, line
        if word == "FROM":
            match = re.fullmatch(r"(\S+) AS ([a-z-]+)", arguments)
            assert match is not None, line
            current = found[match[2]] = Stage(match[2], match[1])
        elif current is not None:
            current.instructions.append((word, arguments))
    return found
