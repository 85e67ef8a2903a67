"""Signing the log's tree heads, and knowing one's own signature again."""

from __future__ import annotations

from gridveil.protocol.checkpoint import TreeHead, log_key, log_origin, open_checkpoint
from gridveil.protocol.errors import MalformedInput, NotAuthentic
from gridveil.protocol.note import Note
from gridveil.protocol.signing import SigningKey
from gridveil_services.releaselog.framing import corrupt


class LogSigner:
    """The identity key of a city's key-holder, as the key of its log."""

    def __init__(self, city_id: bytes, identity: SigningKey) -> None:
        self._origin = log_origin(city_id)
        self._identity = identity
        self.key = log_key(city_id, bytes(identity.verify_key))

    def sign(self, size: int, root: bytes) -> Note:
        """The checkpoint of a tree head."""
        return TreeHead(self._origin, size, root).sign(self._identity)

    def open(self, data: bytes) -> TreeHead:
        """The tree head in a checkpoint of this log, or LOG_CORRUPT."""
        try:
            return open_checkpoint(data, self.key).head
        except (MalformedInput, NotAuthentic):
            raise corrupt("its checkpoint is not signed by this key-holder") from None
