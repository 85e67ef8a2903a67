"""What an aggregator tells of its work to whoever counts it; without one, nobody is told."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from gridveil.protocol.errors import Reason
from gridveil_services.aggregator.store.interface import Phase

if TYPE_CHECKING:
    from gridveil_services.aggregator.ingest import Answer


class Stage(StrEnum):
    """A part of the path of a call's reports."""

    PARSE = "parse"
    VERIFY = "verify"
    """Membership and signatures."""
    KNOWN = "known"
    """Whether reports are stored already."""
    SUM = "sum"
    COMMIT_WAIT = "commit_wait"
    """From handed in until the commit begins."""
    COMMIT = "commit"


class IngestObserver(Protocol):
    """Called from many threads; neither blocks nor raises. It is never told whose report it was."""

    def stage(self, stage: Stage) -> AbstractContextManager[object]:
        """Around a stage of one call."""
        ...

    def waited(self, seconds: float) -> None:
        """One call's reports waited so long, in real seconds, for their commit to begin."""

    def committed(self, reports: int) -> None:
        """A commit of so many reports is durable."""

    def answered(self, answers: Sequence[Answer]) -> None:
        """Reports have their answers."""

    def refused(self, reason: Reason, reports: int) -> None:
        """A call with so many reports was refused as a whole."""

    def store_failed(self, reason: Reason) -> None:
        """The store could not do what it was asked."""

    def attempted(self, phase: Phase | None, seconds: float) -> None:
        """A release was tried; None: it will be tried again."""


class Unobserved:
    """Tells nobody."""

    def stage(self, stage: Stage) -> AbstractContextManager[object]:
        return _NOTHING

    def waited(self, seconds: float) -> None:
        pass

    def committed(self, reports: int) -> None:
        pass

    def answered(self, answers: Sequence[Answer]) -> None:
        pass

    def refused(self, reason: Reason, reports: int) -> None:
        pass

    def store_failed(self, reason: Reason) -> None:
        pass

    def attempted(self, phase: Phase | None, seconds: float) -> None:
        pass


_NOTHING = nullcontext()
