from google.rpc import status_pb2 as _status_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Report(_message.Message):
    __slots__ = ("parameters_digest", "window_start", "meter_id", "flags", "commitment_hash", "sealed_commitment", "ciphertext", "signature")
    PARAMETERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    METER_ID_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    COMMITMENT_HASH_FIELD_NUMBER: _ClassVar[int]
    SEALED_COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    parameters_digest: bytes
    window_start: int
    meter_id: bytes
    flags: int
    commitment_hash: bytes
    sealed_commitment: bytes
    ciphertext: bytes
    signature: bytes
    def __init__(self, parameters_digest: _Optional[bytes] = ..., window_start: _Optional[int] = ..., meter_id: _Optional[bytes] = ..., flags: _Optional[int] = ..., commitment_hash: _Optional[bytes] = ..., sealed_commitment: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("report_digest", "accepted_at_ms", "duplicate")
    REPORT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    report_digest: bytes
    accepted_at_ms: int
    duplicate: bool
    def __init__(self, report_digest: _Optional[bytes] = ..., accepted_at_ms: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class ReportOutcome(_message.Message):
    __slots__ = ("index", "receipt", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    receipt: Receipt
    error: _status_pb2.Status
    def __init__(self, index: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
