"""What a VTN does that no specification allows, and what becomes of objects meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil_services.controller.journal import Delivery
from gridveil_services.controller.vtn.failure import Failure
from tests.support.vtn import Trick, Vtn, serving_vtn
from tests.support.vtn_senders import START, Controlled


@pytest.fixture
def vtn(tmp_path: Path) -> Iterator[Vtn]:
    with serving_vtn(tmp_path / "vtn", now=lambda: START) as found:
        yield found


@pytest.fixture
def controlled(tmp_path: Path, vtn: Vtn) -> Iterator[Controlled]:
    made = Controlled(tmp_path, vtn.url, vtn.ca)
    yield made
    made.close()


def test_of_a_vtn_that_takes_no_token_only_we_are_refused(
    vtn: Vtn, controlled: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = controlled.signal()
    with monkeypatch.context() as patched:
        patched.setattr(vtn, "knows", lambda _authorization: False)
        controlled.send(2)
    assert controlled.seen.failures[:1] == [Failure.NO_TOKEN]
    assert controlled.states(1) == [Delivery.PENDING]

    controlled.send()

    assert vtn.names() == [name]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"token_type": "Bearer", "expires_in": 1},
        {"access_token": "a", "token_type": 5},
        {"access_token": "a", "token_type": "mac"},
        {"access_token": 5, "token_type": "Bearer"},
        {"access_token": "a\r\nb", "token_type": "Bearer"},
        {"access_token": "ä", "token_type": "Bearer"},
        {"access_token": "a", "token_type": "Bearer", "expires_in": float("inf")},
    ],
)
def test_what_is_no_token_is_none(
    vtn: Vtn, controlled: Controlled, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object]
) -> None:
    name = controlled.signal()
    with monkeypatch.context() as patched:
        patched.setattr(vtn, "grant", lambda _form: (200, answer))
        controlled.send(1)
    assert controlled.seen.failures == [Failure.NO_TOKEN]

    controlled.send()

    assert vtn.names() == vtn.attempted == [name]


def test_a_token_in_an_answer_of_many_megabytes_is_not_read(
    vtn: Vtn, controlled: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = vtn.grant
    monkeypatch.setattr(vtn, "grant", lambda form: (200, grant(form)[1] | {"x": "x" * 2**23}))
    controlled.signal()

    controlled.send(2)

    assert controlled.seen.failures == [Failure.UNREACHABLE] * 2
    assert vtn.attempted == []


@pytest.mark.parametrize(
    "value",
    ["Mon, 01 Jan 2024 00:00:00 +99999999999999999999", "Mon, 99999999999999999999 Jan 2024", "-5"],
)
def test_a_time_to_come_back_that_is_none_is_passed_over(
    vtn: Vtn, controlled: Controlled, value: str
) -> None:
    vtn.tricks += [Trick(429, {"Retry-After": value})]
    name = controlled.signal()

    waits = controlled.send()

    assert waits[0] <= 0.5
    assert vtn.names() == [name]


@pytest.mark.parametrize("count", [50, 60])
def test_a_vtn_that_knows_no_pages_is_asked_twice_at_most(
    vtn: Vtn, controlled: Controlled, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    others = [{"eventName": f"other-{at}"} for at in range(count)]
    monkeypatch.setattr(vtn, "listed", lambda _path, _query: others)
    vtn.tricks += [Trick(500)]
    name = controlled.signal()

    controlled.send(3)

    assert vtn.names() == [name]
    assert sum(method == "GET" for method, _ in vtn.requests) <= 2


def test_an_object_that_the_vtn_always_fails_at_keeps_no_other_waiting(
    tmp_path: Path, vtn: Vtn
) -> None:
    controlled = Controlled(tmp_path, vtn.url, vtn.ca, reports=True)
    instance = controlled.journal.instance
    # The third is made 320 s after the end of its window.
    name = f"gridveil-{instance}-{START + 3 * 900 + 320}-3"
    vtn.poison |= {f"{name}-1", f"gridveil-{instance}-w{START}"}
    for _ in range(3):
        controlled.signal(1_100_000)
    controlled.send(6)
    assert vtn.names() == [name, f"{name}-2"]
    vtn.poison.remove(f"{name}-1")

    controlled.send(10)

    assert vtn.names() == [name, f"{name}-2", f"{name}-1"]
    assert vtn.names("/reports") == [f"gridveil-{instance}-w{START + at}" for at in (900, 1_800)]
    controlled.close()
