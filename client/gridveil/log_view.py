"""What a client has seen of the release log: one log, that only grows.

The newest checkpoint is kept in a file, so that a log that was forked or put back is noticed also
by the next run. Nothing here speaks to a service: callers fetch what :meth:`LogView.missing` asks
for and hand it to :meth:`LogView.accept`.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gridveil.files import write_durably
from gridveil.profile import Profile
from gridveil.protocol.checkpoint import Checkpoint, TreeHead, log_key, open_checkpoint
from gridveil.protocol.errors import (
    GridveilError,
    IntegrityLost,
    MalformedInput,
    NotAuthentic,
    Reason,
)
from gridveil.protocol.merkle import verify_consistency

_FORK_SUFFIX = ".fork"


class LogView:
    """The newest checkpoint that was believed, and what else is known to be of the same log."""

    def __init__(self, profile: Profile) -> None:
        """What the profile's file remembers; CONFIG_INVALID if that is no checkpoint of the log."""
        self._key = log_key(profile.city_id, profile.identity_key)
        self._policy = profile.log.witnesses
        self._file = profile.log.checkpoint
        self._opened: dict[bytes, Checkpoint] = {}
        self._roots: dict[int, bytes] = {}
        """Roots by size that are known to be of this log."""
        self._newest = self._remembered()

    @property
    def newest(self) -> TreeHead | None:
        """The largest tree head that was believed, in this run or an earlier one."""
        return self._newest.head if self._newest else None

    def open(self, note: bytes) -> Checkpoint:
        """A checkpoint by the pinned key, cosigned as the profile wants.

        Raises:
            MalformedInput, NotAuthentic, Unavailable: as :func:`open_checkpoint`.
        """
        known = self._opened.get(note)
        if known is None:
            known = open_checkpoint(note, self._key, self._policy)
            self._opened = {note: known}
        return known

    def missing(self, checkpoint: Checkpoint) -> tuple[int, int] | None:
        """The old and the new size that a consistency proof is needed for; None for no proof."""
        head, newest = checkpoint.head, self.newest
        if newest is None or head.size in (0, newest.size) or newest.size == 0:
            return None
        if self._roots.get(head.size) == head.root:
            return None
        return min(head.size, newest.size), max(head.size, newest.size)

    def accept(self, checkpoint: Checkpoint, proof: Sequence[bytes] = ()) -> None:
        """Take a checkpoint for one of this log, and remember it if it is the newest.

        Args:
            checkpoint: from :meth:`open`.
            proof: what :meth:`missing` asks for.

        Raises:
            IntegrityLost: LOG_FORKED if it is of another log than the one seen before.
            MalformedInput: CONFIG_INVALID if the newest cannot be kept: what is not remembered is
                not believed.
        """
        newest = self._newest
        if newest is not None and self._roots.get(checkpoint.head.size) != checkpoint.head.root:
            self._check(newest, checkpoint, proof)
        self._roots[checkpoint.head.size] = checkpoint.head.root
        if newest is None or checkpoint.head.size > newest.head.size:
            self._newest = checkpoint
            self._remember(checkpoint)

    def check_size(self, size: int) -> None:
        """LOG_ROLLED_BACK if a service has a smaller log than was seen before."""
        newest = self.newest
        if newest is not None and size < newest.size:
            raise IntegrityLost(
                Reason.LOG_ROLLED_BACK,
                f"the release log had {newest.size} records, and has {size}",
            )

    def _check(self, newest: Checkpoint, checkpoint: Checkpoint, proof: Sequence[bytes]) -> None:
        old, new = sorted((newest.head, checkpoint.head), key=lambda head: head.size)
        try:
            verify_consistency(old.size, old.root, new.size, new.root, proof)
        except NotAuthentic:
            self._keep_evidence(newest, checkpoint)
            raise IntegrityLost(
                Reason.LOG_FORKED,
                f"the release log of {new.size} records does not go on from the one of"
                f" {old.size} records that was seen before",
            ) from None

    def _remembered(self) -> Checkpoint | None:
        if self._file is None:
            return None
        try:
            # Who cosigned it was checked when it came; the policy may have changed since.
            found = open_checkpoint(self._file.read_bytes(), self._key)
        except FileNotFoundError:
            return None
        except (GridveilError, OSError):
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"{self._file.name} is not a checkpoint of this city's log"
            ) from None
        self._roots[found.head.size] = found.head.root
        return found

    def _remember(self, checkpoint: Checkpoint) -> None:
        if self._file is None:
            return
        try:
            with self._locked():
                kept = self._remembered()
                if kept is None or kept.head.size < checkpoint.head.size:
                    write_durably(self._file, checkpoint.note)
        except OSError:
            raise MalformedInput(
                Reason.CONFIG_INVALID, f"{self._file.name} cannot be kept beside the profile"
            ) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Several commands may run at once; the file never goes back."""
        assert self._file is not None
        with self._file.with_name(self._file.name + ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _keep_evidence(self, newest: Checkpoint, checkpoint: Checkpoint) -> None:
        """Both signed checkpoints: if nobody can join them, the key-holder forked its log."""
        if self._file is not None:
            evidence = self._file.with_name(self._file.name + _FORK_SUFFIX)
            write_durably(evidence, newest.note + b"\n" + checkpoint.note)
