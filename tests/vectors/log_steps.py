"""Vectors of the release log: leaves, roots, proofs, checkpoints, cosignatures."""

from __future__ import annotations

from typing import Any

from nacl.signing import SigningKey

from gridveil.protocol.checkpoint import TreeHead, log_key, log_origin
from gridveil.protocol.merkle import Tree, leaf_hash
from gridveil.protocol.note import NoteKey, SignatureType, cosign
from gridveil.protocol.v1.log_pb2 import (
    LogRecord,
    NoiseMechanism,
    ReleaseIntent,
    RosterChanged,
    WindowExpired,
    WindowRefused,
)
from gridveil.protocol.witnessing import AddCheckpoint
from tests.vectors.material import WINDOW, city

WITNESS = SigningKey(b"witness of the vectors, 32 bytes")
WITNESS_NAME = "witness.example/vectors"
COSIGNED_AT = WINDOW + 1_000
SEEN = 3
"""Records that the witness has seen before."""


def log() -> dict[str, Any]:
    """A log of six records, and everything that is signed and proven of it."""
    place = city("ckks-2048")
    city_id = place.parameters.policy.city_id
    key = log_key(city_id, bytes(place.identity.verify_key))
    records = [record.SerializeToString(deterministic=True) for record in _records()]
    tree = Tree(map(leaf_hash, records))
    size = tree.size
    note = TreeHead(log_origin(city_id), size, tree.root(size)).sign(place.identity)
    line = cosign(note.text, WITNESS_NAME, WITNESS, COSIGNED_AT)
    witness = NoteKey(WITNESS_NAME, SignatureType.COSIGNATURE, bytes(WITNESS.verify_key))
    request = AddCheckpoint(SEEN, tuple(tree.consistency_proof(SEEN, size)), note)
    return {
        "about": "Six records, the roots and proofs over them, and the last root signed.",
        "city_id": city_id.hex(),
        "identity_key": bytes(place.identity.verify_key).hex(),
        "log_key": key.encode(),
        "records": [record.hex() for record in records],
        "leaf_hashes": [leaf_hash(record).hex() for record in records],
        "roots": [tree.root(at).hex() for at in range(size + 1)],
        "inclusion_proofs": [
            {"index": index, "size": at, "hashes": _hex(tree.inclusion_proof(index, at))}
            for at in range(1, size + 1)
            for index in range(at)
        ],
        "consistency_proofs": [
            {"old_size": old, "size": at, "hashes": _hex(tree.consistency_proof(old, at))}
            for at in range(size + 1)
            for old in range(at + 1)
        ],
        "checkpoint": note.encode().decode(),
        "witness_seed": bytes(WITNESS).hex(),
        "witness_key": witness.encode(),
        "cosigned_at": COSIGNED_AT,
        "cosigned_checkpoint": note.with_signatures([line]).encode().decode(),
        "add_checkpoint": request.encode().decode(),
    }


def _records() -> list[LogRecord]:
    digest = bytes(range(32))
    claim = ReleaseIntent(
        window_start=WINDOW, release_digest=digest, parameters_digest=digest, roster_version=3
    )
    noisy = ReleaseIntent(
        window_start=WINDOW + 1800,
        release_digest=digest,
        parameters_digest=digest,
        roster_version=3,
        mechanism=NoiseMechanism.NOISE_MECHANISM_LAPLACE,
        loss_ppm=500_000,
    )
    events = [
        LogRecord(roster_changed=RosterChanged(version=3, effective_window=WINDOW, count=3)),
        LogRecord(expired=WindowExpired(window_start=WINDOW - 900)),
        LogRecord(intent=claim),
        LogRecord(refused=WindowRefused(window_start=WINDOW, release_digest=digest, failures=2)),
        LogRecord(expired=WindowExpired(window_start=WINDOW + 900)),
        LogRecord(intent=noisy),
    ]
    for at, record in enumerate(events):
        record.recorded_at_ms = 1000 * (WINDOW + at)
    return events


def _hex(hashes: list[bytes]) -> list[str]:
    return [value.hex() for value in hashes]
