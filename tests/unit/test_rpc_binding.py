"""A server whose allow-list has a gap does not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gridveil.protocol.v1 import aggregator_pb2
from gridveil_services.rpc import Binding, Role, Server
from gridveil_services.rpc.binding import snake_case
from tests.support.rpc import Certificates, Handlers, options

AGGREGATOR = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"]
ROLES = {name: {Role.METER} for name in AGGREGATOR.methods_by_name}


def bind(service: object, roles: Any) -> Binding:
    return Binding(AGGREGATOR, service, roles)


def test_every_rpc_needs_a_role() -> None:
    bind(Handlers({}), ROLES)
    for name in ROLES:
        with pytest.raises(ValueError, match=f"{name} is allowed to nobody"):
            bind(Handlers({}), {**ROLES, name: set()})
        without = {other: roles for other, roles in ROLES.items() if other != name}
        with pytest.raises(ValueError, match=f"{name} is allowed to nobody"):
            bind(Handlers({}), without)


def test_every_rpc_needs_a_handler() -> None:
    with pytest.raises(ValueError, match="no handler submit_report"):
        bind(object(), ROLES)


def test_roles_belong_to_rpcs_that_exist() -> None:
    with pytest.raises(ValueError, match="SubmitReprot"):
        bind(Handlers({}), {**ROLES, "SubmitReprot": {Role.METER}})


def test_a_role_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="mayor"):
        bind(Handlers({}), {**ROLES, "SubmitReport": {"mayor"}})


def test_a_service_is_bound_once(tmp_path: Path) -> None:
    bindings = [bind(Handlers({}), ROLES)] * 2
    with pytest.raises(ValueError, match="bound twice"):
        Server(bindings, options(Certificates(tmp_path)))


@pytest.mark.parametrize(
    ("name", "snake"),
    [("SubmitReport", "submit_report"), ("Release", "release"), ("GetTotal", "get_total")],
)
def test_handlers_are_named_after_their_rpcs(name: str, snake: str) -> None:
    assert snake_case(name) == snake
