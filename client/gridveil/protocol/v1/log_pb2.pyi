from gridveil.protocol.v1 import totals_pb2 as _totals_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NoiseMechanism(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOISE_MECHANISM_NONE: _ClassVar[NoiseMechanism]
    NOISE_MECHANISM_LAPLACE: _ClassVar[NoiseMechanism]
    NOISE_MECHANISM_GAUSSIAN: _ClassVar[NoiseMechanism]

class DestructionCause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESTRUCTION_CAUSE_UNSPECIFIED: _ClassVar[DestructionCause]
    DESTRUCTION_CAUSE_SETTLED: _ClassVar[DestructionCause]
    DESTRUCTION_CAUSE_BUDGET_SPENT: _ClassVar[DestructionCause]
NOISE_MECHANISM_NONE: NoiseMechanism
NOISE_MECHANISM_LAPLACE: NoiseMechanism
NOISE_MECHANISM_GAUSSIAN: NoiseMechanism
DESTRUCTION_CAUSE_UNSPECIFIED: DestructionCause
DESTRUCTION_CAUSE_SETTLED: DestructionCause
DESTRUCTION_CAUSE_BUDGET_SPENT: DestructionCause

class LogRecord(_message.Message):
    __slots__ = ("recorded_at_ms", "intent", "released", "refused", "expired", "epoch_created", "epoch_destroyed", "roster_changed", "policy_stated", "keyholder_unlocked")
    RECORDED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_CREATED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_DESTROYED_FIELD_NUMBER: _ClassVar[int]
    ROSTER_CHANGED_FIELD_NUMBER: _ClassVar[int]
    POLICY_STATED_FIELD_NUMBER: _ClassVar[int]
    KEYHOLDER_UNLOCKED_FIELD_NUMBER: _ClassVar[int]
    recorded_at_ms: int
    intent: ReleaseIntent
    released: WindowReleased
    refused: WindowRefused
    expired: WindowExpired
    epoch_created: EpochCreated
    epoch_destroyed: EpochDestroyed
    roster_changed: RosterChanged
    policy_stated: PolicyStated
    keyholder_unlocked: KeyHolderUnlocked
    def __init__(self, recorded_at_ms: _Optional[int] = ..., intent: _Optional[_Union[ReleaseIntent, _Mapping]] = ..., released: _Optional[_Union[WindowReleased, _Mapping]] = ..., refused: _Optional[_Union[WindowRefused, _Mapping]] = ..., expired: _Optional[_Union[WindowExpired, _Mapping]] = ..., epoch_created: _Optional[_Union[EpochCreated, _Mapping]] = ..., epoch_destroyed: _Optional[_Union[EpochDestroyed, _Mapping]] = ..., roster_changed: _Optional[_Union[RosterChanged, _Mapping]] = ..., policy_stated: _Optional[_Union[PolicyStated, _Mapping]] = ..., keyholder_unlocked: _Optional[_Union[KeyHolderUnlocked, _Mapping]] = ...) -> None: ...

class ReleaseIntent(_message.Message):
    __slots__ = ("window_start", "release_digest", "parameters_digest", "roster_version", "mechanism", "loss_ppm")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROSTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    LOSS_PPM_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    release_digest: bytes
    parameters_digest: bytes
    roster_version: int
    mechanism: NoiseMechanism
    loss_ppm: int
    def __init__(self, window_start: _Optional[int] = ..., release_digest: _Optional[bytes] = ..., parameters_digest: _Optional[bytes] = ..., roster_version: _Optional[int] = ..., mechanism: _Optional[_Union[NoiseMechanism, str]] = ..., loss_ppm: _Optional[int] = ...) -> None: ...

class WindowReleased(_message.Message):
    __slots__ = ("window_start", "total", "failures")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    total: _totals_pb2.SignedTotal
    failures: int
    def __init__(self, window_start: _Optional[int] = ..., total: _Optional[_Union[_totals_pb2.SignedTotal, _Mapping]] = ..., failures: _Optional[int] = ...) -> None: ...

class WindowRefused(_message.Message):
    __slots__ = ("window_start", "release_digest", "failures", "over_budget")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    OVER_BUDGET_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    release_digest: bytes
    failures: int
    over_budget: bool
    def __init__(self, window_start: _Optional[int] = ..., release_digest: _Optional[bytes] = ..., failures: _Optional[int] = ..., over_budget: _Optional[bool] = ...) -> None: ...

class WindowExpired(_message.Message):
    __slots__ = ("window_start",)
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    def __init__(self, window_start: _Optional[int] = ...) -> None: ...

class EpochCreated(_message.Message):
    __slots__ = ("epoch_id", "parameters_digest", "first_window", "end_window")
    EPOCH_ID_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_WINDOW_FIELD_NUMBER: _ClassVar[int]
    END_WINDOW_FIELD_NUMBER: _ClassVar[int]
    epoch_id: bytes
    parameters_digest: bytes
    first_window: int
    end_window: int
    def __init__(self, epoch_id: _Optional[bytes] = ..., parameters_digest: _Optional[bytes] = ..., first_window: _Optional[int] = ..., end_window: _Optional[int] = ...) -> None: ...

class EpochDestroyed(_message.Message):
    __slots__ = ("epoch_id", "cause", "end_window")
    EPOCH_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    END_WINDOW_FIELD_NUMBER: _ClassVar[int]
    epoch_id: bytes
    cause: DestructionCause
    end_window: int
    def __init__(self, epoch_id: _Optional[bytes] = ..., cause: _Optional[_Union[DestructionCause, str]] = ..., end_window: _Optional[int] = ...) -> None: ...

class RosterChanged(_message.Message):
    __slots__ = ("version", "effective_window", "count", "enrolled", "withdrawn", "roster_digest")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_WINDOW_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    ROSTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version: int
    effective_window: int
    count: int
    enrolled: int
    withdrawn: int
    roster_digest: bytes
    def __init__(self, version: _Optional[int] = ..., effective_window: _Optional[int] = ..., count: _Optional[int] = ..., enrolled: _Optional[int] = ..., withdrawn: _Optional[int] = ..., roster_digest: _Optional[bytes] = ...) -> None: ...

class PolicyStated(_message.Message):
    __slots__ = ("policy", "refusals_per_day")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    policy: bytes
    refusals_per_day: int
    def __init__(self, policy: _Optional[bytes] = ..., refusals_per_day: _Optional[int] = ...) -> None: ...

class KeyHolderUnlocked(_message.Message):
    __slots__ = ("locked_at_index",)
    LOCKED_AT_INDEX_FIELD_NUMBER: _ClassVar[int]
    locked_at_index: int
    def __init__(self, locked_at_index: _Optional[int] = ...) -> None: ...
