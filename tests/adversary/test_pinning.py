"""An aggregator that hands meters city parameters of its own making.

Could it swap a key, it would read every report; could it weaken the policy, meters would trust a
crowd that is none. The meter under attack is the real client, over mTLS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from gridveil.clock import ManualClock
from gridveil.meter import Meter, MeterKeys
from gridveil.protocol.city import CityParameters
from gridveil.protocol.errors import NotAuthentic, Reason
from gridveil.protocol.sealing import x25519_public
from gridveil.protocol.v1.aggregator_pb2 import GetCityParametersRequest, SignedCityParameters
from gridveil_services.rpc import Call, Role
from tests.support.epochs import CityKeys, city_keys, ckks_keys
from tests.support.receiver import Certificates, Receiver, serving
from tests.support.reports import WINDOW

Offer = Callable[[CityKeys], SignedCityParameters]
"""What the attacker makes of the genuine parameters and their signature."""

ATTACKER = SigningKey(b"the attacker's own key".ljust(32))


@dataclass
class LyingReceiver(Receiver):
    """An aggregator that offers what it likes."""

    offer: Offer = lambda keys: keys.signed()

    def get_city_parameters(
        self, _request: GetCityParametersRequest, _call: Call
    ) -> SignedCityParameters:
        return self.offer(self.keys)


def with_genuine_signature(genuine: CityKeys, made: CityParameters) -> SignedCityParameters:
    """Other parameters below the key-holder's signature of its own."""
    return SignedCityParameters(
        parameters=made.encode(), signature=genuine.parameters.sign(genuine.identity)
    )


def signed_by_the_attacker(made: CityParameters) -> SignedCityParameters:
    """Other parameters, signed in all form by somebody else."""
    return SignedCityParameters(parameters=made.encode(), signature=made.sign(ATTACKER))


def other_ckks_key(genuine: CityKeys) -> CityParameters:
    """The attacker's public key in the place of the epoch's."""
    policy = genuine.parameters.policy
    public, _ = ckks_keys(policy.parameter_set, b"the attacker's")
    assert public != genuine.parameters.epoch.ckks_public_key
    return replace(
        genuine.parameters, epoch=replace(genuine.parameters.epoch, ckks_public_key=public)
    )


def other_sealing_key(genuine: CityKeys) -> CityParameters:
    """The attacker's sealing key: it would open every commitment."""
    key = x25519_public(b"the attacker's secret".ljust(32))
    return replace(genuine.parameters, epoch=replace(genuine.parameters.epoch, sealing_key=key))


def more_collusion(genuine: CityKeys) -> CityParameters:
    """Another policy with the genuine keys."""
    policy = replace(genuine.parameters.policy, min_coverage_ppm=500_000)
    return replace(genuine.parameters, policy=policy)


OFFERS: dict[str, Offer] = {
    f"{make.__name__}, {how}": (lambda genuine, make=make, sign=sign: sign(genuine, make(genuine)))
    for make in (other_ckks_key, other_sealing_key, more_collusion)
    for how, sign in {
        "genuine signature": with_genuine_signature,
        "attacker's signature": lambda _genuine, made: signed_by_the_attacker(made),
    }.items()
} | {
    "genuine parameters, attacker's signature": lambda genuine: signed_by_the_attacker(
        genuine.parameters
    ),
    "no signature": lambda genuine: SignedCityParameters(parameters=genuine.parameters.encode()),
    "signature of something else": lambda genuine: SignedCityParameters(
        parameters=genuine.parameters.encode(),
        signature=genuine.identity.sign(genuine.parameters.encode()).signature,
    ),
}


@pytest.fixture(scope="module")
def receiver_and_meter(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LyingReceiver, Meter]]:
    folder = tmp_path_factory.mktemp("pinning")
    clock, keys = ManualClock(WINDOW + 900), city_keys()
    receiver = LyingReceiver(keys, clock)
    certificates = Certificates.make(folder, keys.parameters.policy.city_id)
    with serving(receiver, certificates) as address:
        profile = certificates.profile(Role.METER, keys, address)
        outbox: Path = folder / "outbox.db"
        with Meter.open(profile, keys=MeterKeys.create(), outbox=outbox, clock=clock) as meter:
            yield receiver, meter


@pytest.mark.parametrize("name", OFFERS)
def test_parameters_that_the_pinned_key_did_not_sign_are_refused(
    receiver_and_meter: tuple[LyingReceiver, Meter], name: str
) -> None:
    """The attacker gains nothing: nothing is encrypted, persisted or sent under its keys."""
    receiver, meter = receiver_and_meter
    receiver.offer = OFFERS[name]
    with pytest.raises(NotAuthentic) as refused:
        meter.record(WINDOW, import_wh=412, export_wh=0)
    assert refused.value.reason is Reason.KEY_NOT_PINNED
    assert meter.status() == []
    assert receiver.seen == []
