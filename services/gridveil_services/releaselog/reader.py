"""Following the release log from another process, read-only."""

from __future__ import annotations

from pathlib import Path

from gridveil.protocol.v1.log_pb2 import LogRecord
from gridveil_services.releaselog.framing import (
    EMPTY,
    HEAD,
    RECORDS,
    Head,
    Logged,
    corrupt,
    read_records,
)


class LogReader:
    """Reads what was acknowledged, each record once, and verifies the chain that holds it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._at = EMPTY

    def poll(self) -> list[LogRecord]:
        """The records that are new since the last call; see :meth:`read`."""
        return [logged.record for logged in self.read()]

    def read(self) -> list[Logged]:
        """What is new since the last call; nothing while there is no log yet.

        Raises:
            IntegrityLost: LOG_CORRUPT, also if the log is another one than before.
        """
        try:
            head = Head.load(self._folder / HEAD)
        except FileNotFoundError:
            if self._at != EMPTY:
                raise corrupt("its head is gone") from None
            return []
        if head.size < self._at.size:
            raise corrupt("it is shorter than before")
        with (self._folder / RECORDS).open("rb") as file:
            found = list(read_records(file, self._at, head))
        self._at = head
        return found
