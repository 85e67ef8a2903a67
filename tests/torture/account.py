"""The account of a run, as people read it."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import apsw

from tests.torture.tally import Kind, Tally

ROOT = Path(__file__).parents[2]

_HEAD = """# Reliability, measured

This file is written by `make torture`; do not edit it. It counts the faults that one run put into
Gridveil, and what was wrong afterwards. A run that injects fewer faults than it promises fails, and
so does one that finds anything wrong.
"""

_LIMITS = """## What this does not show

- No machine lost its power. The disk below SQLite and below the release log is simulated: what was
  synced is there, what was not is there, gone, or torn at 512 bytes. A disk that acknowledges a
  sync and forgets it is not covered by anything.
- All ran on one machine with its own file systems; nothing here is about networks.
- Random faults find what random faults find. Each count is a count of attempts, no proof.
- An account is of the commit it names.
"""


@dataclass(frozen=True)
class Entry:
    """What one kind of fault came to."""

    kind: Kind
    promised: int
    seeds: tuple[int, ...]
    tally: Tally
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether all that was promised was injected, and nothing was wrong."""
        return self.tally.injected >= self.promised and not self.tally.violations

    def line(self) -> str:
        """One line for the terminal."""
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.tally.counts.items()))
        return (
            f"{'ok ' if self.kept else 'BAD'} {self.kind.name}: {self.tally.injected:,} of"
            f" {self.promised:,} faults, {len(self.tally.violations)} violations"
            f" ({counts}; {self.seconds:.0f} s)"
        )


@dataclass
class Account:
    """A whole run."""

    length: str
    entries: list[Entry] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))


def write_report(account: Account, path: Path) -> None:
    """Write the account as Markdown."""
    path.write_text("\n".join((_HEAD, _run(account), _table(account), _kinds(account), _LIMITS)))


def _run(account: Account) -> str:
    seconds = sum(entry.seconds for entry in account.entries)
    facts = (
        ("Commit", commit()),
        ("Begun", account.began.strftime("%Y-%m-%d %H:%M UTC")),
        ("Length", f"{account.length}, {seconds:,.0f} s"),
        ("Machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("Software", f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}"),
    )
    return "\n".join(("## The run", "", *(f"- {name}: {value}" for name, value in facts), ""))


def _table(account: Account) -> str:
    rows = [
        "| Fault | Promised | Injected | Violations | Seeds | Also counted | Seconds |",
        "|---|---:|---:|---:|---|---|---:|",
    ]
    for entry in account.entries:
        counts = ", ".join(
            f"{count:,} {name}" for name, count in sorted(entry.tally.counts.items())
        )
        seeds = ", ".join(map(str, entry.seeds))
        rows.append(
            f"| {entry.kind.name} | {entry.promised:,} | {entry.tally.injected:,}"
            f" | {len(entry.tally.violations)} | {seeds} | {counts} | {entry.seconds:.0f} |"
        )
    return "\n".join(("## Faults", "", *rows, ""))


def _kinds(account: Account) -> str:
    lines = [f"- **{entry.kind.name}**: {entry.kind.what}" for entry in account.entries]
    return "\n".join(("## What is done and compared", "", *lines, ""))


def commit() -> str:
    """The commit that ran, and whether files differed from it."""

    def git(*arguments: str) -> str:
        ran = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return ran.stdout.strip()

    # The report itself is what a run changes.
    changed = git("status", "--porcelain", "--", ".", ":!docs/reliability.md")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (
        " with changes" if changed else ""
    )
