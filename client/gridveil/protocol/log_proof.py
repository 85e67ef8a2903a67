"""Proofs for verifiers of other logs (C2SP tlog-proof): a record, offline and self-contained."""

from __future__ import annotations

import base64

from gridveil.protocol.v1.totals_pb2 import LogProof

_HEADER = b"c2sp.org/tlog-proof@v1\n"


def encode_log_proof(proof: LogProof) -> bytes:
    """The proof as a text file; the record itself is not in it."""
    hashes = b"".join(base64.b64encode(value) + b"\n" for value in proof.hashes)
    return _HEADER + b"index %d\n" % proof.index + hashes + b"\n" + proof.checkpoint
