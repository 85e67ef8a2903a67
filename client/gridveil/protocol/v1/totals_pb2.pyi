from gridveil.protocol.v1 import aggregator_pb2 as _aggregator_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NotReleasedReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOT_RELEASED_REASON_UNSPECIFIED: _ClassVar[NotReleasedReason]
    NOT_RELEASED_REASON_REFUSED: _ClassVar[NotReleasedReason]
    NOT_RELEASED_REASON_EXPIRED: _ClassVar[NotReleasedReason]
    NOT_RELEASED_REASON_BUDGET_EXHAUSTED: _ClassVar[NotReleasedReason]
NOT_RELEASED_REASON_UNSPECIFIED: NotReleasedReason
NOT_RELEASED_REASON_REFUSED: NotReleasedReason
NOT_RELEASED_REASON_EXPIRED: NotReleasedReason
NOT_RELEASED_REASON_BUDGET_EXHAUSTED: NotReleasedReason

class GetTotalRequest(_message.Message):
    __slots__ = ("window_start",)
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    def __init__(self, window_start: _Optional[int] = ...) -> None: ...

class ListTotalsRequest(_message.Message):
    __slots__ = ("from_window", "until_window", "page_size", "page_token")
    FROM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    UNTIL_WINDOW_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    from_window: int
    until_window: int
    page_size: int
    page_token: bytes
    def __init__(self, from_window: _Optional[int] = ..., until_window: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[bytes] = ...) -> None: ...

class ListTotalsResponse(_message.Message):
    __slots__ = ("outcomes", "next_page_token")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[WindowOutcome]
    next_page_token: bytes
    def __init__(self, outcomes: _Optional[_Iterable[_Union[WindowOutcome, _Mapping]]] = ..., next_page_token: _Optional[bytes] = ...) -> None: ...

class WatchTotalsRequest(_message.Message):
    __slots__ = ("from_window",)
    FROM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    from_window: int
    def __init__(self, from_window: _Optional[int] = ...) -> None: ...

class WindowOutcome(_message.Message):
    __slots__ = ("window_start", "total", "not_released", "proof")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    NOT_RELEASED_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    total: SignedTotal
    not_released: NotReleasedReason
    proof: LogProof
    def __init__(self, window_start: _Optional[int] = ..., total: _Optional[_Union[SignedTotal, _Mapping]] = ..., not_released: _Optional[_Union[NotReleasedReason, str]] = ..., proof: _Optional[_Union[LogProof, _Mapping]] = ...) -> None: ...

class LogProof(_message.Message):
    __slots__ = ("index", "record", "hashes", "checkpoint")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    index: int
    record: bytes
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: bytes
    def __init__(self, index: _Optional[int] = ..., record: _Optional[bytes] = ..., hashes: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class SignedTotal(_message.Message):
    __slots__ = ("total", "signature")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    total: bytes
    signature: bytes
    def __init__(self, total: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class GetEntriesRequest(_message.Message):
    __slots__ = ("window_start",)
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    def __init__(self, window_start: _Optional[int] = ...) -> None: ...

class OpenedEntries(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: bytes
    def __init__(self, entries: _Optional[bytes] = ...) -> None: ...

class GetParametersRequest(_message.Message):
    __slots__ = ("window_start",)
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    def __init__(self, window_start: _Optional[int] = ...) -> None: ...

class GetOwnEntryRequest(_message.Message):
    __slots__ = ("window_start", "tag")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    tag: bytes
    def __init__(self, window_start: _Optional[int] = ..., tag: _Optional[bytes] = ...) -> None: ...

class OwnEntry(_message.Message):
    __slots__ = ("sealed_entry", "index", "leaf_hash", "proof")
    SEALED_ENTRY_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LEAF_HASH_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    sealed_entry: bytes
    index: int
    leaf_hash: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, sealed_entry: _Optional[bytes] = ..., index: _Optional[int] = ..., leaf_hash: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...
