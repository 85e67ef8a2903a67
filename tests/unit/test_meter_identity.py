"""A meter's keys stay in its files, whole and private."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gridveil.meter_identity import MeterKeys, append_fleet, read_fleet, write_fleet
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.protocol.roster import open_enrolment
from tests.support.reports import CITY_ID


def test_saved_keys_are_loaded_again_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    keys = MeterKeys.create("label")
    keys.save(tmp_path / "meter.key")
    assert MeterKeys.load(tmp_path / "meter.key") == keys
    assert stat.S_IMODE((tmp_path / "meter.key").stat().st_mode) == 0o600


def test_new_meters_differ_in_everything() -> None:
    one, other = MeterKeys.create(), MeterKeys.create()
    assert not {one.meter_id, one.signing_seed, one.sealing_secret} & {
        other.meter_id,
        other.signing_seed,
        other.sealing_secret,
    }


def test_no_text_of_the_keys_shows_a_secret() -> None:
    keys = MeterKeys.create()
    for text in (repr(keys), str(keys), f"{[keys]}"):
        for secret in (keys.signing_seed, keys.sealing_secret):
            assert secret.hex() not in text
            assert repr(secret) not in text


def test_the_enrolment_request_proves_the_signing_key() -> None:
    keys = MeterKeys.create()
    member = open_enrolment(keys.enrolment_request(CITY_ID), CITY_ID)
    assert member == keys.member


def test_existing_keys_are_not_overwritten(tmp_path: Path) -> None:
    first = MeterKeys.create()
    first.save(tmp_path / "meter.key")
    with pytest.raises(MalformedInput) as refused:
        MeterKeys.create().save(tmp_path / "meter.key")
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert MeterKeys.load(tmp_path / "meter.key") == first


def test_a_fleet_is_read_back_in_order(tmp_path: Path) -> None:
    meters = [MeterKeys.create(f"home {n}") for n in range(5)]
    assert write_fleet(tmp_path / "fleet.jsonl", meters[:3]) == 3
    assert append_fleet(tmp_path / "fleet.jsonl", meters[3:]) == 2
    assert list(read_fleet(tmp_path / "fleet.jsonl")) == meters
    assert stat.S_IMODE((tmp_path / "fleet.jsonl").stat().st_mode) == 0o600
    with pytest.raises(MalformedInput):
        write_fleet(tmp_path / "fleet.jsonl", [])


@pytest.mark.parametrize(
    "broken",
    [
        b"{}\n",
        b"not json\n",
        b'{"meter_id": "00"}\n',
        b'{"meter_id":"zz","signing_seed":"00","sealing_secret":"00"}\n',
        b"\n",
        b"\xff\xfe\n",
    ],
)
def test_a_broken_line_is_named_and_its_content_is_not_shown(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "fleet.jsonl"
    write_fleet(path, [MeterKeys.create()])
    with path.open("ab") as file:
        file.write(broken)
    with pytest.raises(MalformedInput, match=r"fleet\.jsonl, line 2 does not hold") as refused:
        list(read_fleet(path))
    assert "zz" not in refused.value.message


@pytest.mark.parametrize("repeat", ["meter", "label"])
def test_a_repeated_meter_or_label_is_refused(tmp_path: Path, repeat: str) -> None:
    first = MeterKeys.create("home")
    second = first if repeat == "meter" else MeterKeys.create("home")
    write_fleet(tmp_path / "fleet.jsonl", [first, second])
    with pytest.raises(MalformedInput, match="line 2 repeats a meter"):
        list(read_fleet(tmp_path / "fleet.jsonl"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match=r"meter\.key cannot be read"):
        MeterKeys.load(tmp_path / "meter.key")
    with pytest.raises(MalformedInput, match=r"fleet\.jsonl cannot be read"):
        list(read_fleet(tmp_path / "fleet.jsonl"))
