from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SignalBasis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIGNAL_BASIS_UNSPECIFIED: _ClassVar[SignalBasis]
    SIGNAL_BASIS_MEASURED: _ClassVar[SignalBasis]
    SIGNAL_BASIS_ESTIMATED: _ClassVar[SignalBasis]
    SIGNAL_BASIS_HELD: _ClassVar[SignalBasis]
    SIGNAL_BASIS_NEUTRAL: _ClassVar[SignalBasis]

class DeliveryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_STATE_UNSPECIFIED: _ClassVar[DeliveryState]
    DELIVERY_STATE_NOT_SENT: _ClassVar[DeliveryState]
    DELIVERY_STATE_PENDING: _ClassVar[DeliveryState]
    DELIVERY_STATE_DELIVERED: _ClassVar[DeliveryState]
    DELIVERY_STATE_REFUSED: _ClassVar[DeliveryState]
    DELIVERY_STATE_SUPERSEDED: _ClassVar[DeliveryState]

class ForecastMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORECAST_METHOD_UNSPECIFIED: _ClassVar[ForecastMethod]
    FORECAST_METHOD_RIDGE: _ClassVar[ForecastMethod]
    FORECAST_METHOD_LAST_WEEK: _ClassVar[ForecastMethod]
SIGNAL_BASIS_UNSPECIFIED: SignalBasis
SIGNAL_BASIS_MEASURED: SignalBasis
SIGNAL_BASIS_ESTIMATED: SignalBasis
SIGNAL_BASIS_HELD: SignalBasis
SIGNAL_BASIS_NEUTRAL: SignalBasis
DELIVERY_STATE_UNSPECIFIED: DeliveryState
DELIVERY_STATE_NOT_SENT: DeliveryState
DELIVERY_STATE_PENDING: DeliveryState
DELIVERY_STATE_DELIVERED: DeliveryState
DELIVERY_STATE_REFUSED: DeliveryState
DELIVERY_STATE_SUPERSEDED: DeliveryState
FORECAST_METHOD_UNSPECIFIED: ForecastMethod
FORECAST_METHOD_RIDGE: ForecastMethod
FORECAST_METHOD_LAST_WEEK: ForecastMethod

class GetSignalRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchSignalsRequest(_message.Message):
    __slots__ = ()
    FROM_FIELD_NUMBER: _ClassVar[int]
    def __init__(self, **kwargs) -> None: ...

class ControlSignal(_message.Message):
    __slots__ = ("at", "window_start", "level", "basis", "cause", "measured_w", "estimated_w", "ramp_w", "reason", "openadr", "number")
    AT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_W_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_W_FIELD_NUMBER: _ClassVar[int]
    RAMP_W_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPENADR_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    at: int
    window_start: int
    level: int
    basis: SignalBasis
    cause: str
    measured_w: int
    estimated_w: int
    ramp_w: int
    reason: str
    openadr: _containers.RepeatedCompositeFieldContainer[OpenAdrObject]
    number: int
    def __init__(self, at: _Optional[int] = ..., window_start: _Optional[int] = ..., level: _Optional[int] = ..., basis: _Optional[_Union[SignalBasis, str]] = ..., cause: _Optional[str] = ..., measured_w: _Optional[int] = ..., estimated_w: _Optional[int] = ..., ramp_w: _Optional[int] = ..., reason: _Optional[str] = ..., openadr: _Optional[_Iterable[_Union[OpenAdrObject, _Mapping]]] = ..., number: _Optional[int] = ...) -> None: ...

class OpenAdrObject(_message.Message):
    __slots__ = ("json", "delivery")
    JSON_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    json: str
    delivery: DeliveryState
    def __init__(self, json: _Optional[str] = ..., delivery: _Optional[_Union[DeliveryState, str]] = ...) -> None: ...

class GetRulesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ControlRules(_message.Message):
    __slots__ = ("register", "window_length", "capacity_w", "thresholds_w", "hysteresis_w", "ramp_limit_w", "hold_s", "stale_after_s", "hold_safe_s", "min_coverage_percent", "time_zone")
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    WINDOW_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_W_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_W_FIELD_NUMBER: _ClassVar[int]
    HYSTERESIS_W_FIELD_NUMBER: _ClassVar[int]
    RAMP_LIMIT_W_FIELD_NUMBER: _ClassVar[int]
    HOLD_S_FIELD_NUMBER: _ClassVar[int]
    STALE_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    HOLD_SAFE_S_FIELD_NUMBER: _ClassVar[int]
    MIN_COVERAGE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    register: str
    window_length: int
    capacity_w: int
    thresholds_w: _containers.RepeatedScalarFieldContainer[int]
    hysteresis_w: int
    ramp_limit_w: int
    hold_s: int
    stale_after_s: int
    hold_safe_s: int
    min_coverage_percent: int
    time_zone: str
    def __init__(self, register: _Optional[str] = ..., window_length: _Optional[int] = ..., capacity_w: _Optional[int] = ..., thresholds_w: _Optional[_Iterable[int]] = ..., hysteresis_w: _Optional[int] = ..., ramp_limit_w: _Optional[int] = ..., hold_s: _Optional[int] = ..., stale_after_s: _Optional[int] = ..., hold_safe_s: _Optional[int] = ..., min_coverage_percent: _Optional[int] = ..., time_zone: _Optional[str] = ...) -> None: ...

class GetForecastRequest(_message.Message):
    __slots__ = ("day",)
    DAY_FIELD_NUMBER: _ClassVar[int]
    day: str
    def __init__(self, day: _Optional[str] = ...) -> None: ...

class DemandForecast(_message.Message):
    __slots__ = ("day", "method", "points")
    DAY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    day: str
    method: ForecastMethod
    points: _containers.RepeatedCompositeFieldContainer[ForecastPoint]
    def __init__(self, day: _Optional[str] = ..., method: _Optional[_Union[ForecastMethod, str]] = ..., points: _Optional[_Iterable[_Union[ForecastPoint, _Mapping]]] = ...) -> None: ...

class ForecastPoint(_message.Message):
    __slots__ = ("window_start", "expected_w", "low_w", "high_w", "yesterday_w", "last_week_w")
    WINDOW_START_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_W_FIELD_NUMBER: _ClassVar[int]
    LOW_W_FIELD_NUMBER: _ClassVar[int]
    HIGH_W_FIELD_NUMBER: _ClassVar[int]
    YESTERDAY_W_FIELD_NUMBER: _ClassVar[int]
    LAST_WEEK_W_FIELD_NUMBER: _ClassVar[int]
    window_start: int
    expected_w: int
    low_w: int
    high_w: int
    yesterday_w: int
    last_week_w: int
    def __init__(self, window_start: _Optional[int] = ..., expected_w: _Optional[int] = ..., low_w: _Optional[int] = ..., high_w: _Optional[int] = ..., yesterday_w: _Optional[int] = ..., last_week_w: _Optional[int] = ...) -> None: ...
