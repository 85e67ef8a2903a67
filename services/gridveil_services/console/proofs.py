"""What a browser needs to check a window by itself: the record, its proof, and the checkpoint."""

from __future__ import annotations

import base64
from typing import Any

from gridveil.operator import AsyncOperator, ReleasedTotal


class Prover:
    """Asks the release log; what it answers was checked here too."""

    def __init__(self, operator: AsyncOperator) -> None:
        self._operator = operator

    async def proof(self, window_start: int) -> dict[str, Any]:
        """Of a settled window, bytes as base64.

        Raises:
            WrongState: NOT_RELEASED if it is not settled; else as the operator's client.
        """
        outcome, proof = await self._operator.proven(window_start)
        found: dict[str, Any] = {
            "window_start": window_start,
            "record": _base64(proof.record),
            "index": proof.index,
            "hashes": [_base64(hashed) for hashed in proof.hashes],
            "checkpoint": proof.checkpoint.decode(),
        }
        if isinstance(outcome, ReleasedTotal):
            found["total"] = _base64(outcome.encoded)
            found["signature"] = _base64(outcome.signature)
        return found


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
