from gridveil.protocol.v1 import aggregator_pb2 as _aggregator_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrecheckEntriesRequest(_message.Message):
    __slots__ = ("window_start", "parameters_digest", "roster_version", "entries")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    parameters_digest: bytes
    roster_version: int
    entries: bytes
    def __init__(self, window_start: _Optional[int] = ..., parameters_digest: _Optional[bytes] = ..., roster_version: _Optional[int] = ..., entries: _Optional[bytes] = ...) -> None: ...

class PrecheckEntriesResponse(_message.Message):
    __slots__ = ("held",)
    HELD_FIELD_NUMBER: _ClassVar[int]
    held: int
    def __init__(self, held: _Optional[int] = ...) -> None: ...

class GetReleaseProgressRequest(_message.Message):
    __slots__ = ("window_start", "release_digest")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    release_digest: bytes
    def __init__(self, window_start: _Optional[int] = ..., release_digest: _Optional[bytes] = ...) -> None: ...

class ReleaseProgress(_message.Message):
    __slots__ = ("complete", "entry_bytes")
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_BYTES_FIELD_NUMBER: _ClassVar[int]
    complete: bool
    entry_bytes: int
    def __init__(self, complete: _Optional[bool] = ..., entry_bytes: _Optional[int] = ...) -> None: ...

class ReleaseMessage(_message.Message):
    __slots__ = ("header", "lane", "entries", "close")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    header: ReleaseHeader
    lane: ReleaseLane
    entries: EntryChunk
    close: ReleaseClose
    def __init__(self, header: _Optional[_Union[ReleaseHeader, _Mapping]] = ..., lane: _Optional[_Union[ReleaseLane, _Mapping]] = ..., entries: _Optional[_Union[EntryChunk, _Mapping]] = ..., close: _Optional[_Union[ReleaseClose, _Mapping]] = ...) -> None: ...

class ReleaseHeader(_message.Message):
    __slots__ = ("window_start", "parameters_digest", "roster_version", "lanes", "count", "release_digest")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    parameters_digest: bytes
    roster_version: int
    lanes: int
    count: int
    release_digest: bytes
    def __init__(self, window_start: _Optional[int] = ..., parameters_digest: _Optional[bytes] = ..., roster_version: _Optional[int] = ..., lanes: _Optional[int] = ..., count: _Optional[int] = ..., release_digest: _Optional[bytes] = ...) -> None: ...

class ReleaseLane(_message.Message):
    __slots__ = ("lane", "count", "ciphertext")
    LANE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    lane: int
    count: int
    ciphertext: bytes
    def __init__(self, lane: _Optional[int] = ..., count: _Optional[int] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class EntryChunk(_message.Message):
    __slots__ = ("offset", "entries")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    entries: bytes
    def __init__(self, offset: _Optional[int] = ..., entries: _Optional[bytes] = ...) -> None: ...

class ReleaseClose(_message.Message):
    __slots__ = ("release_digest",)
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    release_digest: bytes
    def __init__(self, release_digest: _Optional[bytes] = ...) -> None: ...

class ReleaseReceipt(_message.Message):
    __slots__ = ("release_digest", "replayed")
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    release_digest: bytes
    replayed: bool
    def __init__(self, release_digest: _Optional[bytes] = ..., replayed: _Optional[bool] = ...) -> None: ...

class EnrolMetersRequest(_message.Message):
    __slots__ = ("enrolments",)
    ENROLMENTS_FIELD_NUMBER: _ClassVar[int]
    enrolments: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, enrolments: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WithdrawMetersRequest(_message.Message):
    __slots__ = ("meter_ids",)
    METER_IDS_FIELD_NUMBER: _ClassVar[int]
    meter_ids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, meter_ids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SignedRosterVersion(_message.Message):
    __slots__ = ("roster_version", "signature")
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    roster_version: bytes
    signature: bytes
    def __init__(self, roster_version: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class GetRosterRequest(_message.Message):
    __slots__ = ("known_version", "window_start")
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    known_version: int
    window_start: int
    def __init__(self, known_version: _Optional[int] = ..., window_start: _Optional[int] = ...) -> None: ...

class RosterChunk(_message.Message):
    __slots__ = ("head", "added", "removed")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    head: SignedRosterVersion
    added: bytes
    removed: bytes
    def __init__(self, head: _Optional[_Union[SignedRosterVersion, _Mapping]] = ..., added: _Optional[bytes] = ..., removed: _Optional[bytes] = ...) -> None: ...

class ListSuspectsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListSuspectsResponse(_message.Message):
    __slots__ = ("suspects",)
    SUSPECTS_FIELD_NUMBER: _ClassVar[int]
    suspects: _containers.RepeatedCompositeFieldContainer[Suspect]
    def __init__(self, suspects: _Optional[_Iterable[_Union[Suspect, _Mapping]]] = ...) -> None: ...

class Suspect(_message.Message):
    __slots__ = ("meter_id", "windows", "failed", "proven", "score")
    METER_ID_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    meter_id: bytes
    windows: int
    failed: int
    proven: int
    score: float
    def __init__(self, meter_id: _Optional[bytes] = ..., windows: _Optional[int] = ..., failed: _Optional[int] = ..., proven: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...
