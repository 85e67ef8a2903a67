"""Keys shared with meters are derived before a release needs them, each once an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.clock import ManualClock
from gridveil.protocol.sealing import shared_key
from gridveil_services.keyholder.epoch_keys import EpochKeys, OpeningFailed
from gridveil_services.keyholder.epoch_store import Secrets, SignedParameters
from gridveil_services.keyholder.keyholder import KeyHolder
from gridveil_services.keyholder.membership import Membership
from tests.support.epochs import CityKeys, city_keys
from tests.support.keyholders import make_config
from tests.support.reports import WINDOW, make_members

METERS = make_members(12)
WITHDRAWN = 3


@pytest.fixture(scope="module")
def made() -> CityKeys:
    return city_keys()


@pytest.fixture
def keys(made: CityKeys) -> EpochKeys:
    residues = b"".join(residue.to_bytes(8, "little") for residue in made.ckks_secret)
    signed = SignedParameters(made.parameters, made.parameters.sign(made.identity))
    return EpochKeys(signed, Secrets(made.sealing_secret, residues))


@pytest.fixture
def members() -> Membership:
    members = Membership()
    for meter in METERS[:10]:
        members.add(meter.member, 1)
    members.withdraw(METERS[WITHDRAWN].meter_id, 2)
    return members


def test_ahead_of_need_every_enrolled_meter_gets_its_turn_once(
    keys: EpochKeys, members: Membership
) -> None:
    assert [keys.derive_ahead(members, 4) for _ in range(4)] == [4, 4, 1, 0]
    for late in METERS[10:]:
        members.add(late.member, 2)
    assert [keys.derive_ahead(members, 4) for _ in range(2)] == [2, 0]


def test_what_was_derived_ahead_is_what_a_release_asks_for(
    keys: EpochKeys, made: CityKeys, members: Membership
) -> None:
    keys.derive_ahead(members, 100)
    epoch, city_id = made.parameters.epoch, made.parameters.policy.city_id
    for place in range(10):
        member = members.at(place)
        assert keys.shared_key(place, member) == shared_key(
            made.sealing_secret, member.sealing_key, city_id, epoch.epoch_id, member.meter_id
        )


def test_nothing_is_derived_with_keys_that_are_destroyed(
    keys: EpochKeys, members: Membership
) -> None:
    keys.derive_ahead(members, 4)
    keys.destroy()
    with pytest.raises(OpeningFailed):
        keys.derive_ahead(members, 4)


def test_upkeep_leaves_nothing_to_derive(tmp_path: Path) -> None:
    keyholder = KeyHolder(make_config(tmp_path / "keyholder"), ManualClock(WINDOW))
    try:
        keyholder.roster.enrol([meter.member for meter in METERS])
        keyholder.upkeep.tick()
        for signed in map(keyholder.ring.for_window, (WINDOW, WINDOW + 86_400)):
            assert signed is not None
            keys = keyholder.ring.by_digest(signed.parameters.digest)
            assert keys is not None
            assert keys.derive_ahead(keyholder.roster.members, 1) == 0
    finally:
        keyholder.close()
