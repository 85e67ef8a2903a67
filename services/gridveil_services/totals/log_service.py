"""The handlers of ``gridveil.v1.ReleaseLog``: checkpoints, proofs, and the records themselves."""

from __future__ import annotations

from gridveil.protocol.checkpoint import Checkpoint
from gridveil.protocol.errors import MalformedInput, Reason, WrongState
from gridveil.protocol.v1 import totals_pb2, transparency_pb2
from gridveil.protocol.windows import WindowRules
from gridveil_services.releaselog.published import PublishedLog
from gridveil_services.rpc import Binding, Call, Role
from gridveil_services.totals.index import SettledIndex

DEFAULT_RECORDS = 100
MOST_RECORDS = 1_000
MOST_BYTES = 2**20
"""Of records in one answer, beyond the first of them."""

_AUDITORS = {Role.OPERATOR, Role.AUDITOR}
_READERS = _AUDITORS | {Role.CONTROLLER, Role.METER, Role.GATEWAY}


class Prover:
    """Adds to an outcome the proof that the log says so."""

    def __init__(self, log: PublishedLog) -> None:
        self._log = log

    def prove(self, outcome: totals_pb2.WindowOutcome) -> totals_pb2.WindowOutcome:
        """A copy of the outcome with its proof under the newest checkpoint."""
        proven = totals_pb2.WindowOutcome()
        proven.CopyFrom(outcome)
        checkpoint = newest(self._log)
        proven.proof.hashes[:] = self._log.inclusion_proof(outcome.proof.index, checkpoint)
        proven.proof.checkpoint = checkpoint.note
        return proven


class LogService:
    """Answers from the published log."""

    def __init__(self, log: PublishedLog, index: SettledIndex, window_length: int) -> None:
        self._log = log
        self._index = index
        self._prover = Prover(log)
        self._rules = WindowRules(window_length, grace=0, early_leeway=0)

    def get_checkpoint(
        self, _request: transparency_pb2.GetCheckpointRequest, _call: Call
    ) -> transparency_pb2.SignedCheckpoint:
        self._index.check()
        return transparency_pb2.SignedCheckpoint(checkpoint=newest(self._log).note)

    def get_inclusion_proof(
        self, request: transparency_pb2.GetInclusionProofRequest, _call: Call
    ) -> totals_pb2.LogProof:
        self._rules.check_aligned(request.window_start)
        outcome = self._index.get(request.window_start)
        if outcome is None:
            raise WrongState(Reason.NOT_RELEASED, "nothing is released for this window")
        return self._prover.prove(outcome).proof

    def get_consistency_proof(
        self, request: transparency_pb2.GetConsistencyProofRequest, _call: Call
    ) -> transparency_pb2.ConsistencyProof:
        self._index.check()
        size = newest(self._log).head.size
        if not request.old_size <= request.size <= size:
            raise MalformedInput(
                Reason.RANGE_INVALID, "the log has no such sizes", field="size", log_size=str(size)
            )
        hashes = self._log.consistency_proof(request.old_size, request.size)
        return transparency_pb2.ConsistencyProof(hashes=hashes)

    def get_records(
        self, request: transparency_pb2.GetRecordsRequest, _call: Call
    ) -> transparency_pb2.LogRecords:
        self._index.check()
        if request.limit > MOST_RECORDS:
            raise MalformedInput(
                Reason.RANGE_INVALID, f"limit is at most {MOST_RECORDS}", field="limit"
            )
        size = newest(self._log).head.size
        last = min(size, request.first + (request.limit or DEFAULT_RECORDS))
        records: list[bytes] = []
        total = 0
        for index in range(request.first, last):
            record = self._log.payload(index)
            total += len(record)
            if records and total > MOST_BYTES:
                break
            records.append(record)
        return transparency_pb2.LogRecords(records=records)


def newest(log: PublishedLog) -> Checkpoint:
    """The newest checkpoint, or NOT_RELEASED while the key-holder has published none."""
    if log.checkpoint is None:
        raise WrongState(Reason.NOT_RELEASED, "there is no release log yet")
    return log.checkpoint


def log_binding(service: LogService) -> Binding:
    """The service for a server, with who may call what."""
    return Binding(
        transparency_pb2.DESCRIPTOR.services_by_name["ReleaseLog"],
        service,
        {
            "GetCheckpoint": _READERS,
            "GetInclusionProof": _READERS,
            "GetConsistencyProof": _READERS,
            "GetRecords": _AUDITORS,
        },
    )
