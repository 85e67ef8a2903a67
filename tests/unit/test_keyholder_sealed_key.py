"""A key split among officers: enough shares give it, fewer say nothing, wrong ones are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import pytest

from gridveil.protocol.errors import GridveilError, IntegrityLost, MalformedInput, Reason
from gridveil_services.keyholder.key_shares import (
    LONGEST_SHARE,
    Share,
    Split,
    combine_shares,
    split_key,
)
from gridveil_services.keyholder.sealed_key import SealedKey

CITY = bytes(range(16))
KEY = bytearray(range(100, 132))

OLD_SEALED = (
    b"""{
  "format": "gridveil/v1/sealed-key",
  "city_id": "000102030405060708090a0b0c0d0e0f",
  "split_id": "08f13899cb3494d9a98b6f1eedebc5a4",
  "threshold": 2,
  "digests": [
    "2fb8496ea1ee64ab15293039906ca89c35a0c3112164090cd61fcfa17a6b764a",
    "e7e207339884d4551aa70b448ef7343ac887c78e02cd8d24e4a207f80472778a",
    "a2be56801aa6cdec7b1dc51a248830c97cff3ddfcc4ffeda62cb3a0bde0fc4a0"
  ],
  "sealed": "c656b526470249ab3750a44990e30f4844f3e7444e438044b3a72412715c"""
    b"""750bde8cfbe0fabe51682226931fb0a81f0742d422b5115dd17a5f721f7e"
}
"""
)
OLD_SHARES = (
    b"""{
  "format": "gridveil/v1/key-share",
  "city_id": "000102030405060708090a0b0c0d0e0f",
  "split_id": "08f13899cb3494d9a98b6f1eedebc5a4",
  "threshold": 2,
  "shares": 3,
  "index": 1,
  "share": "9f946500f635a2e9d574b0ef1bd39ee52372a36744f741bc395f431ec70dd868",
  "checksum": "2fb8496ea1ee64ab15293039906ca89c35a0c3112164090cd61fcfa17a6b764a"
}
""",
    b"""{
  "format": "gridveil/v1/key-share",
  "city_id": "000102030405060708090a0b0c0d0e0f",
  "split_id": "08f13899cb3494d9a98b6f1eedebc5a4",
  "threshold": 2,
  "shares": 3,
  "index": 2,
  "share": "4233db6bb3f02aadf4de8777009463a8e6d617fee8526ac3490827e6a00e10d4",
  "checksum": "e7e207339884d4551aa70b448ef7343ac887c78e02cd8d24e4a207f80472778a"
}
""",
)


@pytest.fixture
def made() -> tuple[SealedKey, list[Share]]:
    return SealedKey.seal(KEY, Split.new(CITY, 3, 5))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(MalformedInput) as refused:
        call()
    assert refused.value.reason is Reason.CONFIG_INVALID
    return refused.value.message


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or how it refuses."""
    try:
        return call()
    except GridveilError as refused:
        return refused


def one_bit_off(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def checked(sealed: SealedKey, data: bytes) -> Share:
    share = Share.decode(data, "a.json")
    sealed.check(share, "a.json")
    return share


def test_any_three_of_five_shares_open_the_key(made: tuple[SealedKey, list[Share]]) -> None:
    sealed, shares = made
    for size in (3, 4, 5):
        for chosen in combinations(shares, size):
            assert sealed.open(chosen) == KEY
            assert sealed.open(chosen[::-1]) == KEY


def test_fewer_shares_combine_to_something_else() -> None:
    """Two of three points fit every key: what comes out depends on the shares, not on it."""
    split = Split.new(CITY, 3, 5)
    first, second = split_key(KEY, split), split_key(KEY, split)
    found = {bytes(combine_shares(pair)) for s in (first, second) for pair in combinations(s, 2)}
    assert bytes(KEY) not in found
    assert len(found) == 20
    assert all(bytes(combine_shares(s[:3])) == KEY for s in (first, second))


def test_what_an_earlier_version_made_still_opens() -> None:
    """Shares are kept for years: another field, order or format would lock the city out."""
    sealed = SealedKey.decode(OLD_SEALED)
    shares = [Share.decode(each, f"share {at}") for at, each in enumerate(OLD_SHARES)]
    for share in shares:
        sealed.check(share, "share")
    assert sealed.open(shares) == KEY
    assert sealed.encode() == OLD_SEALED
    assert [share.encode() for share in shares] == list(OLD_SHARES)


def test_too_few_and_doubled_shares_are_refused(made: tuple[SealedKey, list[Share]]) -> None:
    sealed, shares = made
    few = refusal(lambda: sealed.open(shares[:2]))
    assert few == "3 different shares are needed, 2 given"
    assert "are needed, 0 given" in refusal(lambda: sealed.open([]))
    twice = refusal(lambda: sealed.open([shares[1], shares[0], shares[1]]))
    assert twice == "share 2 was given twice"


@pytest.mark.parametrize(
    ("threshold", "count"), [(1, 3), (0, 3), (4, 3), (2, 17), (-1, 2), (300, 300)]
)
def test_impossible_splits_are_refused(threshold: int, count: int) -> None:
    assert "2 <= threshold" in refusal(lambda: Split.new(CITY, threshold, count))


def test_shares_of_another_key_are_named(made: tuple[SealedKey, list[Share]]) -> None:
    sealed, shares = made
    _, elsewhere = SealedKey.seal(KEY, Split.new(bytes(16), 3, 5))
    _, again = SealedKey.seal(KEY, Split.new(CITY, 3, 5))
    forged = replace(shares[2], value=bytes(32))
    more = replace(shares[2], split=replace(shares[2].split, count=6))
    fewer = replace(shares[2], split=replace(shares[2].split, threshold=2))
    sealed.check(shares[2], "c.json")
    for share, says in (
        (elsewhere[2], "c.json is a share of another city's key"),
        (again[2], "c.json is a share of another split"),
        (more, "c.json is a share of another split"),
        (fewer, "c.json is a share of another split"),
        (forged, "c.json is not the share that was given out"),
        (replace(shares[2], index=4), "c.json is not the share that was given out"),
    ):
        assert refusal(lambda share=share: sealed.check(share, "c.json")).startswith(says)  # type: ignore[misc]


def test_a_damaged_share_is_named_and_nothing_of_it_told(
    made: tuple[SealedKey, list[Share]],
) -> None:
    """A changed digit anywhere is found, but for the case of letters and space around it."""
    sealed, shares = made
    whole = shares[0].encode()
    value = shares[0].value.hex()
    for changed in one_bit_off(whole):
        found = outcome(lambda changed=changed: checked(sealed, changed))  # type: ignore[misc]
        if isinstance(found, GridveilError):
            assert found.reason is Reason.CONFIG_INVALID
            assert found.message.startswith("a.json is ")
            assert value not in found.message
        else:
            assert found == shares[0]
    for length in range(len(whole) - 2):
        assert "a.json" in refusal(lambda length=length: Share.decode(whole[:length], "a.json"))  # type: ignore[misc]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"null",
        b"0" * (LONGEST_SHARE + 1),
        OLD_SHARES[0].replace(b"key-share", b"sealed-key"),
        OLD_SHARES[0].replace(b"9f946500", b"9f946501"),
        OLD_SHARES[0].replace(b'"index": 1', b'"index": 0'),
        OLD_SHARES[0].replace(b'"index": 1', b'"index": 4'),
        OLD_SHARES[0].replace(b'"index": 1', b'"index": "1"'),
        OLD_SHARES[0].replace(b'"index": 1', b'"index": 1, "more": 1'),
        OLD_SHARES[0].replace(b'"shares": 3', b'"shares": 99999999999999999999'),
        OLD_SHARES[0].replace(b'"threshold": 2', b'"threshold": 1'),
    ],
)
def test_what_is_no_share_is_named(data: bytes) -> None:
    assert refusal(lambda: Share.decode(data, "a.json")).startswith("a.json is ")


def test_a_sealed_key_changed_anywhere_opens_nothing(made: tuple[SealedKey, list[Share]]) -> None:
    """Also one that asks for fewer shares, or names others: the seal covers all of the file."""
    sealed, shares = made
    whole = sealed.encode()
    for changed in one_bit_off(whole):
        found = outcome(lambda changed=changed: SealedKey.decode(changed).open(shares))  # type: ignore[misc]
        if isinstance(found, GridveilError):
            assert found.reason in {Reason.PARTIAL_CORRUPT, Reason.CONFIG_INVALID}
        else:
            assert found == KEY
            assert SealedKey.decode(changed) == sealed
    for length in range(len(whole) - 2):
        with pytest.raises(IntegrityLost):
            SealedKey.decode(whole[:length])
    weaker = replace(sealed, split=replace(sealed.split, threshold=2))
    for changed_key in (weaker, replace(sealed, digests=sealed.digests[::-1])):
        with pytest.raises(IntegrityLost):
            changed_key.open(shares)


def test_neither_file_holds_what_others_keep(made: tuple[SealedKey, list[Share]]) -> None:
    sealed, shares = made
    assert bytes(KEY).hex() not in sealed.encode().decode()
    for share in shares:
        assert share.value.hex() not in sealed.encode().decode()
        assert share.value.hex() not in repr(share)
        assert bytes(KEY).hex() not in share.encode().decode()
        assert len(share.encode()) < LONGEST_SHARE
        assert json.loads(share.encode())["index"] == share.index
