"""The handlers of ``gridveil.v1.Controller``."""

from __future__ import annotations

from collections.abc import Iterator

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.v1 import controller_pb2
from gridveil_services.controller.core import Basis
from gridveil_services.controller.forecasts import Forecasts, parse_day
from gridveil_services.controller.journal import Delivery, Shown
from gridveil_services.controller.rules import ControlRules
from gridveil_services.controller.signalling import Signaller
from gridveil_services.rpc import Binding, Call, Role

_READERS = {Role.OPERATOR, Role.AUDITOR}
_BASES = {
    Basis.MEASURED: controller_pb2.SIGNAL_BASIS_MEASURED,
    Basis.ESTIMATED: controller_pb2.SIGNAL_BASIS_ESTIMATED,
    Basis.HELD: controller_pb2.SIGNAL_BASIS_HELD,
    Basis.NEUTRAL: controller_pb2.SIGNAL_BASIS_NEUTRAL,
}
_DELIVERIES = {
    Delivery.NOT_SENT: controller_pb2.DELIVERY_STATE_NOT_SENT,
    Delivery.PENDING: controller_pb2.DELIVERY_STATE_PENDING,
    Delivery.DELIVERED: controller_pb2.DELIVERY_STATE_DELIVERED,
    Delivery.REFUSED: controller_pb2.DELIVERY_STATE_REFUSED,
    Delivery.SUPERSEDED: controller_pb2.DELIVERY_STATE_SUPERSEDED,
}


class ControllerService:
    """Answers from what was journalled."""

    def __init__(
        self, rules: ControlRules, time_zone: str, signaller: Signaller, forecasts: Forecasts
    ) -> None:
        self._rules = _message_of(rules, time_zone)
        self._signaller = signaller
        self._forecasts = forecasts

    def get_signal(
        self, _request: controller_pb2.GetSignalRequest, _call: Call
    ) -> controller_pb2.ControlSignal:
        return signal_message(self._signaller.newest())

    def watch_signals(
        self, request: controller_pb2.WatchSignalsRequest, call: Call
    ) -> Iterator[controller_pb2.ControlSignal]:
        # The field has the name of a keyword.
        from_: int = getattr(request, "from")
        if from_ < 0:
            raise MalformedInput(Reason.FIELD_RANGE, "from is a time, or 0", field="from")
        call.on_end(self._signaller.wake)
        return map(signal_message, self._signaller.watch(from_, call.is_active))

    def get_rules(
        self, _request: controller_pb2.GetRulesRequest, _call: Call
    ) -> controller_pb2.ControlRules:
        return self._rules

    def get_forecast(
        self, request: controller_pb2.GetForecastRequest, _call: Call
    ) -> controller_pb2.DemandForecast:
        return self._forecasts.day(parse_day(request.day))


def controller_binding(service: ControllerService) -> Binding:
    """The service for a server, with who may call what."""
    descriptor = controller_pb2.DESCRIPTOR.services_by_name["Controller"]
    return Binding(descriptor, service, {rpc.name: _READERS for rpc in descriptor.methods})


def signal_message(shown: Shown) -> controller_pb2.ControlSignal:
    """A signal as it crosses the wire."""
    signal = shown.signal
    return controller_pb2.ControlSignal(
        number=shown.number,
        at=signal.at,
        window_start=signal.window_start,
        level=signal.level,
        basis=_BASES[signal.basis],
        cause=signal.cause,
        measured_w=signal.measured_w,
        estimated_w=signal.estimated_w,
        ramp_w=signal.ramp_w,
        reason=signal.reason,
        openadr=(
            controller_pb2.OpenAdrObject(json=body, delivery=_DELIVERIES[delivery])
            for body, delivery in shown.objects
        ),
    )


def _message_of(rules: ControlRules, time_zone: str) -> controller_pb2.ControlRules:
    return controller_pb2.ControlRules(
        register=rules.register,
        window_length=rules.window_length,
        capacity_w=rules.capacity_w,
        thresholds_w=map(rules.threshold_w, (1, 2, 3)),
        hysteresis_w=rules.hysteresis_w,
        ramp_limit_w=rules.ramp_limit_w,
        hold_s=rules.hold_s,
        stale_after_s=rules.stale_after_s,
        hold_safe_s=rules.hold_safe_s,
        min_coverage_percent=rules.min_coverage_percent,
        time_zone=time_zone,
    )
