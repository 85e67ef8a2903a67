"""Clients of a totals service, and windows for it to serve."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from gridveil.operator import Operator
from gridveil.profile import Profile, Tls
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.v1 import totals_pb2_grpc, transparency_pb2_grpc
from gridveil.transport import connect, from_rpc_error
from gridveil_services.bootstrap.layout import CityPaths
from tests.support.city import MIDNIGHT
from tests.support.totals import OpenedWindow, city_identity, open_window, readings

METERS = 100
LENGTH = 900


def window(at: int) -> int:
    return MIDNIGHT + at * LENGTH


def opened(paths: CityPaths, at: int, meters: int = METERS) -> OpenedWindow:
    policy, signer = city_identity(paths)
    return open_window(policy, signer, window(at), readings(meters, seed=at))


def client(paths: CityPaths, role: str = "operator") -> Operator:
    return Operator.open(str(paths.profile(role)))


def stub(paths: CityPaths, role: str = "operator") -> totals_pb2_grpc.TotalsStub:
    return totals_pb2_grpc.TotalsStub(_channel(paths, role))


def log_stub(paths: CityPaths, role: str = "operator") -> transparency_pb2_grpc.ReleaseLogStub:
    return transparency_pb2_grpc.ReleaseLogStub(_channel(paths, role))


def _channel(paths: CityPaths, role: str) -> grpc.Channel:
    profile = Profile.load(paths.profile("operator"))
    folder = paths.tls(role)
    tls = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    return connect(profile.endpoint("totals"), "totals", profile.city_id, tls)


def refusal(call: Callable[[], object]) -> GridveilError:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return from_rpc_error(raised.value)
