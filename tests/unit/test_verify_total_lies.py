"""docs/verify_total.py finds every lie that a key-holder could sign, each for its own reason.

Byte flips do not show this: signatures and roots catch them before the check in question.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

from gridveil.export import encode_export
from gridveil.protocol.errors import GridveilError
from gridveil.protocol.release import ENTRY_BYTES, RegisterTotal
from gridveil.protocol.roster import RosterVersion, roster_digest
from gridveil.protocol.slots import GROUP_ORDER
from gridveil.protocol.windows import lane_of
from gridveil.registrar import Roster
from gridveil.settlements import ReleasedTotal
from gridveil_services.releaselog.signing import LogSigner
from tests.support.reports import WINDOW, city_policy, make_members
from tests.support.totals import (
    OpenedWindow,
    expired,
    intent,
    open_window,
    opened_entry,
    proven,
    readings,
    released,
)

METERS = 120
IDENTITY = SigningKey(b"k" * 32)
SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "verify_total.py"

Lie = Callable[[OpenedWindow], OpenedWindow]


@lru_cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_total", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache
def honest() -> OpenedWindow:
    return open_window(city_policy(), IDENTITY, WINDOW, readings(METERS))


def signed_roster(opened: OpenedWindow, **changes: object) -> Roster:
    members = tuple(sorted(opened.roster.values()))
    city_id, digest = opened.total.city_id, roster_digest(members)
    head = RosterVersion(city_id, 1, WINDOW, len(members), digest)
    head = replace(head, **changes)  # type: ignore[arg-type]
    return Roster(head, members, head.sign(IDENTITY))


def export(opened: OpenedWindow, roster: Roster | None = None) -> bytes:
    """The file, with everything signed that the key-holder signs."""
    records = [intent(WINDOW), expired(WINDOW - 900), released(opened), expired(WINDOW - 1800)]
    outcome = proven(LogSigner(opened.total.city_id, IDENTITY), records, 2)
    signed = opened.signed()
    found = ReleasedTotal(opened.total, signed.total, signed.signature)
    key = bytes(IDENTITY.verify_key)
    return encode_export(found, opened.entries, outcome.proof, key, roster or signed_roster(opened))


def refusal(file: bytes) -> str:
    with pytest.raises((SystemExit, BadSignatureError)) as refused:
        script().verify(file, IDENTITY.verify_key)
    return str(refused.value)


def test_an_honest_window_verifies() -> None:
    window, sums, count, size, exact = script().verify(export(honest()), IDENTITY.verify_key)
    assert (window, count, size, exact) == (WINDOW, METERS, 4, "exact")
    assert sums == [(r.name, r.sum) for r in honest().total.registers]


def doubled(opened: OpenedWindow) -> OpenedWindow:
    first, *others = opened.single_entries
    return opened.with_entries([first, first, *others])


def swapped(opened: OpenedWindow) -> OpenedWindow:
    first, second, *others = opened.single_entries
    return opened.with_entries([second, first, *others])


def dropped(opened: OpenedWindow) -> OpenedWindow:
    return opened.with_entries(opened.single_entries[1:])


def other_commitment(opened: OpenedWindow) -> OpenedWindow:
    first, second, *others = opened.single_entries
    return opened.with_entries([first[:ENTRY_BYTES] + second[ENTRY_BYTES:], second, *others])


def forged(opened: OpenedWindow) -> OpenedWindow:
    """Flags, sealed commitment and ciphertext digest are in nothing but the meter's signature."""
    first, *others = opened.single_entries
    return opened.with_entries([first[:60] + bytes([first[60] ^ 1]) + first[61:], *others])


def invented(opened: OpenedWindow) -> OpenedWindow:
    strangers = {meter.meter_id: meter.member for meter in make_members(METERS, seed=1)}
    return replace(opened, roster=strangers)


def more(opened: OpenedWindow) -> OpenedWindow:
    first, second = opened.total.registers
    return opened.with_total(
        registers=(RegisterTotal(first.name, first.unit, first.sum + 1), second)
    )


def beyond(opened: OpenedWindow) -> OpenedWindow:
    """The same packed scalar, other digits: what one register lacks the other has 2^60 times."""
    first, second = opened.total.registers
    return opened.with_total(
        registers=(
            RegisterTotal(first.name, first.unit, first.sum + 2**60),
            RegisterTotal(second.name, second.unit, second.sum - 1),
        )
    )


def other_blinding(opened: OpenedWindow) -> OpenedWindow:
    other = (int.from_bytes(opened.total.blinding, "little") + 1) % GROUP_ORDER
    return opened.with_total(blinding=other.to_bytes(32, "little"))


LIES: dict[Lie, str] = {
    doubled: "out of its place",
    swapped: "out of its place",
    lambda opened: opened.with_total(left_out=(0,)): "out of its place",
    lambda opened: opened.with_total(lanes=7): "out of its place",
    dropped: "opening equation",
    other_commitment: "a commitment",
    forged: "Signature was forged",
    invented: "not enrolled",
    lambda opened: opened.with_total(count=METERS - 1): "as many entries",
    lambda opened: opened.with_total(entries_root=bytes(32)): "not the entries",
    lambda opened: opened.with_total(epoch_id=bytes(16)): "",
    lambda opened: opened.with_total(parameters_digest=bytes(32)): "Signature was forged",
    more: "opening equation",
    beyond: "opening equation",
    other_blinding: "opening equation",
}


@pytest.mark.parametrize(("lie", "reason"), LIES.items())
def test_a_total_that_is_a_lie_is_found_out_though_it_is_signed(lie: Lie, reason: str) -> None:
    assert reason in refusal(export(lie(honest())))


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"count": METERS + 1}, {"digest": bytes(32)}, {"city_id": bytes(16)}],
)
def test_another_roster_than_the_totals_is_refused(changes: dict[str, object]) -> None:
    assert "another roster" in refusal(export(honest(), signed_roster(honest(), **changes)))


def test_a_roster_that_the_key_holder_did_not_sign_is_refused() -> None:
    roster = signed_roster(honest())
    thief = SigningKey(b"t" * 32)
    assert refusal(export(honest(), replace(roster, signature=roster.head.sign(thief))))


def test_a_total_that_the_log_does_not_have_is_refused() -> None:
    """Nor can one borrow the proof of another."""
    other = open_window(city_policy(), IDENTITY, WINDOW, readings(METERS, seed=9), seed=9)
    whole, foreign = export(honest()), export(other)
    tail = len(foreign) - len(foreign.rpartition(other.entries)[2])
    borrowed = whole[: len(whole) - len(foreign[tail:])] + foreign[tail:]
    assert borrowed != whole
    assert refusal(borrowed)


def test_a_checkpoint_of_another_key_is_refused() -> None:
    thief = SigningKey(b"t" * 32)
    log = proven(LogSigner(honest().total.city_id, thief), [released(honest())], 0).proof
    signed = honest().signed()
    found = ReleasedTotal(honest().total, signed.total, signed.signature)
    with pytest.raises(GridveilError):
        encode_export(found, honest().entries, log, bytes(IDENTITY.verify_key))
    stolen = encode_export(
        found, honest().entries, log, bytes(thief.verify_key), signed_roster(honest())
    )
    assert "forged" in refusal(stolen)


def test_a_total_that_somebody_else_signed_is_refused_though_the_log_has_it() -> None:
    assert "forged" in refusal(export(replace(honest(), identity=SigningKey(b"t" * 32))))


@pytest.mark.parametrize("commitment", [bytes(32), b"\xff" * 32], ids=["identity", "no point"])
def test_a_meter_that_committed_to_nothing_is_not_counted(commitment: bytes) -> None:
    """Adding it would change no sum, and the total would count one meter more."""
    more = make_members(METERS + 1)[-1]
    entry = opened_entry(honest().parameters, WINDOW, more, commitment)
    total = honest().total
    entries = sorted(
        [*honest().single_entries, entry],
        key=lambda e: (lane_of(total.epoch_id, WINDOW, e[:16], total.lanes), e[:16]),
    )
    everybody = honest().roster | {more.meter_id: more.member}
    opened = replace(honest().with_entries(entries), roster=everybody)
    opened = opened.with_total(enrolled=METERS + 1)
    assert "a commitment that is none" in refusal(export(opened))
