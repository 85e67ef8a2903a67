from gridveil.protocol.v1 import report_pb2 as _report_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AggregateKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGGREGATE_KIND_UNSPECIFIED: _ClassVar[AggregateKind]
    AGGREGATE_KIND_SUM: _ClassVar[AggregateKind]
    AGGREGATE_KIND_MEAN: _ClassVar[AggregateKind]
AGGREGATE_KIND_UNSPECIFIED: AggregateKind
AGGREGATE_KIND_SUM: AggregateKind
AGGREGATE_KIND_MEAN: AggregateKind

class SubmitReportsRequest(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[_report_pb2.Report]
    def __init__(self, reports: _Optional[_Iterable[_Union[_report_pb2.Report, _Mapping]]] = ...) -> None: ...

class SubmitReportsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[_report_pb2.ReportOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[_report_pb2.ReportOutcome, _Mapping]]] = ...) -> None: ...

class GetCityParametersRequest(_message.Message):
    __slots__ = ("window_start",)
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    def __init__(self, window_start: _Optional[int] = ...) -> None: ...

class SignedCityParameters(_message.Message):
    __slots__ = ("parameters", "signature")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    parameters: bytes
    signature: bytes
    def __init__(self, parameters: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class GetAggregateRequest(_message.Message):
    __slots__ = ("window_start", "kind")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    kind: AggregateKind
    def __init__(self, window_start: _Optional[int] = ..., kind: _Optional[_Union[AggregateKind, str]] = ...) -> None: ...

class EncryptedAggregate(_message.Message):
    __slots__ = ("window_start", "kind", "parameters_digest", "count", "scale", "lanes")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    kind: AggregateKind
    parameters_digest: bytes
    count: int
    scale: float
    lanes: _containers.RepeatedCompositeFieldContainer[EncryptedLane]
    def __init__(self, window_start: _Optional[int] = ..., kind: _Optional[_Union[AggregateKind, str]] = ..., parameters_digest: _Optional[bytes] = ..., count: _Optional[int] = ..., scale: _Optional[float] = ..., lanes: _Optional[_Iterable[_Union[EncryptedLane, _Mapping]]] = ...) -> None: ...

class EncryptedLane(_message.Message):
    __slots__ = ("lane", "count", "ciphertext")
    LANE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    lane: int
    count: int
    ciphertext: bytes
    def __init__(self, lane: _Optional[int] = ..., count: _Optional[int] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...
