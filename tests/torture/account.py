"""The account of a run, as people read it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import apsw

from tests.torture.tally import Kind, Tally

ROOT = Path(__file__).parents[2]

_HEAD = """# Reliability, measured

This file is written by `make torture`; do not edit it. It counts the faults that were put into
Gridveil, and what was wrong afterwards; what each seed came to is in `reliability.json`. A run that
injects fewer faults than it promises fails, and so does one that finds anything wrong.
"""

_LIMITS = """## What this does not show

- No machine lost its power. The disk below SQLite and below the release log is simulated: what was
  synced is there, what was not is there, gone, or torn at 512 bytes. A disk that acknowledges a
  sync and forgets it is not covered by anything.
- All ran on one machine with its own file systems; nothing here is about networks.
- Random faults find what random faults find. Each count is a count of attempts, no proof.
- Each line is of the commit that it names.
"""


@dataclass(frozen=True)
class Part:
    """What one kind of fault came to, on some of its seeds."""

    kind: str
    length: str
    seeds: tuple[int, ...]
    promised: int
    tally: Tally
    seconds: float
    commit: str
    began: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"tally": self.tally.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        changed = {"tally": Tally.from_json(data["tally"]), "seeds": tuple(data["seeds"])}
        return cls(**data | changed)


@dataclass(frozen=True)
class Entry:
    """What one kind of fault came to, on all of its seeds."""

    kind: Kind
    length: str
    parts: Sequence[Part]

    @property
    def promised(self) -> int:
        return self.kind.promised[self.length]

    @property
    def tally(self) -> Tally:
        tally = Tally()
        for part in self.parts:
            tally.add(part.tally)
        return tally

    @property
    def kept(self) -> bool:
        """Whether all that was promised was injected, and nothing was wrong."""
        whole = sum(part.promised for part in self.parts) >= self.promised
        return whole and self.tally.injected >= self.promised and not self.tally.violations

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    def line(self) -> str:
        """One line for the terminal."""
        tally = self.tally
        return (
            f"{'ok ' if self.kept else 'BAD'} {self.kind.name}: {tally.injected:,} of"
            f" {self.promised:,} faults, {len(tally.violations)} violations"
            f" ({_counts(tally)}; {self.seconds:.0f} s)"
        )


class Account:
    """Parts of runs; in a file, so that a long run may be broken off and gone on with."""

    def __init__(self, path: Path | None = None) -> None:
        """Read what ``path`` has; nothing is kept without it."""
        self._path = path
        self._lock = threading.Lock()
        self.parts: list[Part] = []
        if path is not None and path.exists():
            self.parts = [Part.from_json(data) for data in json.loads(path.read_text("utf-8"))]

    def lacking(self, kind: Kind, length: str, seeds: Iterable[int]) -> list[int]:
        """The seeds that have no part yet."""
        of_kind = self._of(kind, length)
        return [seed for seed in seeds if not any(seed in part.seeds for part in of_kind)]

    def add(self, part: Part) -> None:
        """Keep a part. From any thread."""
        with self._lock:
            self.parts.append(part)
            if self._path is not None:
                lines = ",\n".join(json.dumps(part.to_json()) for part in self.parts)
                self._path.write_text(f"[\n{lines}\n]\n", "utf-8")

    def entry(self, kind: Kind, length: str) -> Entry:
        """All parts of a kind."""
        return Entry(kind, length, self._of(kind, length))

    def best(self, kind: Kind) -> Entry:
        """The long run of a kind if it is whole, else the short one."""
        long = self.entry(kind, "long")
        short = self.entry(kind, "short")
        return long if long.kept or not short.parts else short

    def _of(self, kind: Kind, length: str) -> list[Part]:
        return [part for part in self.parts if (part.kind, part.length) == (kind.name, length)]


def write_report(account: Account, kinds: Iterable[Kind], path: Path) -> None:
    """Write the account of kinds as Markdown."""
    entries = [account.best(kind) for kind in kinds]
    path.write_text("\n".join((_HEAD, _run(), _table(entries), _kinds(entries), _LIMITS)), "utf-8")


def _run() -> str:
    facts = (
        ("Machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("Software", f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}"),
    )
    return "\n".join(("## The runs", "", *(f"- {name}: {value}" for name, value in facts), ""))


def _table(entries: Iterable[Entry]) -> str:
    rows = [
        "| Fault | Promised | Injected | Violations | Seeds | Also counted | Seconds | Run"
        " | Commit |",
        "|---|---:|---:|---:|---|---|---:|---|---|",
    ]
    for entry in entries:
        seeds = ", ".join(str(seed) for part in entry.parts for seed in part.seeds)
        commits = ", ".join(dict.fromkeys(part.commit for part in entry.parts))
        days = ", ".join(dict.fromkeys(part.began[:10] for part in entry.parts))
        rows.append(
            f"| {entry.kind.name} | {entry.promised:,} | {entry.tally.injected:,}"
            f" | {len(entry.tally.violations)} | {seeds} | {_counts(entry.tally)}"
            f" | {entry.seconds:.0f} | {entry.length}, {days} | {commits} |"
        )
    return "\n".join(("## Faults", "", *rows, ""))


def _counts(tally: Tally) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(tally.counts.items()))


def _kinds(entries: Iterable[Entry]) -> str:
    lines = [f"- **{entry.kind.name}**: {entry.kind.what}" for entry in entries]
    return "\n".join(("## What is done and compared", "", *lines, ""))


def commit() -> str:
    """The commit that ran, and whether files differed from it."""

    def git(*arguments: str) -> str:
        ran = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return ran.stdout.strip()

    # The account itself is what a run changes.
    changed = git("status", "--porcelain", "--", ".", ":!docs/reliability.*")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (
        " with changes" if changed else ""
    )
