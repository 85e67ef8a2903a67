"""Checking what is stored, offline: what a checker is, and which are installed.

Each kind of store has its checker beside it, in whichever package that is; entry points of the
group ``gridveil.checkers`` name them. So a machine checks what its own role stores, and loads no
other role's code.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from gridveil.protocol.errors import IntegrityLost, Reason, Unavailable

GROUP = "gridveil.checkers"


class Trust(NamedTuple):
    """The city whose store it should be: without it signatures are not checked."""

    city_id: bytes
    identity_key: bytes
    """Ed25519 public key of the key-holder."""


@dataclass(frozen=True)
class Checker:
    """How one kind of store is told from others, and checked."""

    kind: str
    """What people call it."""
    recognises: Callable[[Path], bool]
    """Whether a path is of this kind, by its content; of a damaged one too, as far as possible."""
    check: Callable[[Path, Trust | None], Mapping[str, int]]
    """Read all of it, change nothing; how much of what there was.

    Raises:
        IntegrityLost: at the first thing that is wrong; the message names it and tells nothing
            that is secret.
        Unavailable: STORE_UNAVAILABLE if a process uses it.
        MalformedInput: CONFIG_INVALID if it is of a version that is not known.
    """


def checkers() -> list[Checker]:
    """All that are installed, with what their role needs."""
    found = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        # The services are one distribution: what a role needs beyond its base may not be there.
        with suppress(ModuleNotFoundError):
            found.append(entry.load())
    return found


def damaged(how: str) -> IntegrityLost:
    """PARTIAL_CORRUPT: ``how`` says what is wrong, in a few words and without anything secret."""
    return IntegrityLost(Reason.PARTIAL_CORRUPT, how)


def demand(whole: bool, how: str) -> None:
    """Raise :func:`damaged` unless ``whole``."""
    if not whole:
        raise damaged(how)


@contextmanager
def unused(lock: Path) -> Iterator[None]:
    """Keep writers away while something is checked; STORE_UNAVAILABLE if one is there.

    Args:
        lock: the file that a writer holds; a copy has none. Nothing is written to it.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                Reason.STORE_UNAVAILABLE, "a process uses it: stop it first"
            ) from None
        yield
    finally:
        os.close(descriptor)
