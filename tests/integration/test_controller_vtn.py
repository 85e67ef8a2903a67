"""What reaches a VTN, whatever it or the network does, and what never waits for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from openadr3.api import OpenADRClient
from openadr3.auth import fetch_token

from gridveil.control import Delivery as Shown
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.controller.config import ControllerConfig
from gridveil_services.controller.journal import Delivery, Kind
from gridveil_services.controller.vtn.client import VtnClient
from gridveil_services.controller.vtn.config import VtnAccess
from gridveil_services.controller.vtn.failure import Failure
from tests.support.controllers import ControlledCity
from tests.support.ports import spare_port
from tests.support.vtn import (
    CLIENT,
    PROGRAM,
    REPORT_EVENT,
    SECRET,
    Trick,
    Vtn,
    make_identity,
    serving_vtn,
)
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


def test_a_signal_is_delivered_once_and_an_independent_client_reads_it(
    vtn: Vtn, controlled: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = controlled.signal(1_100_000)

    controlled.send()

    assert controlled.states(1) == [Delivery.DELIVERED] * 3
    monkeypatch.setenv("SSL_CERT_FILE", str(vtn.ca))
    token = fetch_token(vtn.url, CLIENT, SECRET, token_url=f"{vtn.url}/auth/token")
    with OpenADRClient(vtn.url, token=token) as reader:
        found = reader.events(programID=PROGRAM)
    intervals = [event.intervals or [] for event in found]
    assert [event.event_name for event in found] == [name, f"{name}-1", f"{name}-2"]
    level, *limits = [first.payloads[0] for first, *_ in intervals]
    assert (level.type, level.values) == ("SIMPLE", [3])
    assert [limit.values for limit in limits] == [[150.0], [50.0]]


def test_use_is_reported_once_a_window_with_its_quality(tmp_path: Path, vtn: Vtn) -> None:
    controlled = Controlled(tmp_path, vtn.url, vtn.ca, reports=True)
    controlled.signal()
    controlled.gap()

    controlled.send()

    first, second = vtn.objects["/reports"]
    assert first["eventID"] == second["eventID"] == REPORT_EVENT
    payloads = [one["resources"][0]["intervals"][0]["payloads"] for one in (first, second)]
    assert payloads == [
        [{"type": "USAGE", "values": [125.0]}, {"type": "DATA_QUALITY", "values": ["OK"]}],
        [{"type": "DATA_QUALITY", "values": ["MISSING"]}],
    ]
    assert controlled.seen.ended.count((Kind.REPORT, Delivery.DELIVERED)) == 2
    controlled.close()


def test_a_scope_is_asked_for_if_one_is_configured(tmp_path: Path, vtn: Vtn) -> None:
    for name, scope in (("one", "write_events write_reports"), ("other", None)):
        (tmp_path / name).mkdir()
        controlled = Controlled(tmp_path / name, vtn.url, vtn.ca, scope=scope)
        controlled.signal()
        controlled.send()
        controlled.close()
    assert vtn.scopes == ["write_events write_reports", None]


def test_the_newest_signal_goes_first_and_supersedes_those_that_wait(
    vtn: Vtn, controlled: Controlled
) -> None:
    names = [controlled.signal() for _ in range(3)]

    controlled.send()

    assert vtn.names() == [names[-1]]
    assert [controlled.states(n) for n in (1, 2, 3)] == [
        [Delivery.SUPERSEDED],
        [Delivery.SUPERSEDED],
        [Delivery.DELIVERED],
    ]


def test_errors_of_the_server_are_tried_again_later_and_later(
    vtn: Vtn, controlled: Controlled
) -> None:
    vtn.tricks += [Trick(500), Trick(502), Trick(503)]
    name = controlled.signal()

    waits = controlled.send()

    assert vtn.names() == [name]
    assert controlled.seen.failures == [Failure.SERVER_ERROR] * 3
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0 <= waits[2] <= 2.0


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_vtn_that_asks_to_wait_is_not_asked_before(
    vtn: Vtn, controlled: Controlled, form: str
) -> None:
    later = datetime.now(UTC) + timedelta(seconds=60)
    value = "60" if form == "seconds" else format_datetime(later, usegmt=True)
    vtn.tricks += [Trick(429, {"Retry-After": value})]
    name = controlled.signal()

    waits = controlled.send()
    other = controlled.signal()
    controlled.send()

    assert 55 <= waits[0] <= 61
    assert vtn.names() == [name, other]


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422, 302])
def test_what_a_vtn_refuses_is_not_sent_again(
    vtn: Vtn, controlled: Controlled, status: int
) -> None:
    vtn.tricks += [Trick(status)]
    controlled.signal()

    controlled.send()
    controlled.send()

    assert controlled.states(1) == [Delivery.REFUSED]
    assert len(vtn.attempted) == 1
    assert controlled.seen.failures == [Failure.REFUSED]


@pytest.mark.parametrize("status", [408, 425, 429, 500])
def test_what_a_vtn_puts_off_is_sent_again(vtn: Vtn, controlled: Controlled, status: int) -> None:
    vtn.tricks += [Trick(status)]
    name = controlled.signal()
    controlled.send()
    assert vtn.names() == [name]


def test_a_token_that_has_expired_is_renewed_before_it_is_used(
    vtn: Vtn, controlled: Controlled
) -> None:
    vtn.lifetime_s = 61
    controlled.signal()
    controlled.send()
    given = vtn.tokens_given
    vtn.lifetime_s = 30
    vtn.take_tokens_back()

    # Less than a minute is left of the next ones, so each is good for one call.
    for _ in range(2):
        controlled.signal()
        controlled.send()

    assert len(vtn.names()) == 3
    assert vtn.tokens_given > given + 1
    assert controlled.seen.failures == []


def test_a_token_that_was_taken_back_is_fetched_anew_once(vtn: Vtn, controlled: Controlled) -> None:
    controlled.signal()
    controlled.send()
    vtn.take_tokens_back()

    name = controlled.signal()
    controlled.send()

    assert vtn.names()[-1] == name
    assert vtn.tokens_given == 2
    assert controlled.seen.failures == []


def test_without_a_token_nothing_is_sent_and_it_is_tried_again(
    vtn: Vtn, controlled: Controlled
) -> None:
    vtn.token_tricks += [500, 401]
    name = controlled.signal()

    controlled.send()

    assert controlled.seen.failures == [Failure.NO_TOKEN] * 2
    assert vtn.attempted == [name]


def test_an_object_that_was_taken_without_an_answer_is_not_sent_twice(
    vtn: Vtn, controlled: Controlled
) -> None:
    vtn.tricks += [Trick(taken=True, silent=True)]
    name = controlled.signal()

    controlled.send()

    assert controlled.seen.failures == [Failure.UNANSWERED]
    assert vtn.names() == vtn.attempted == [name]
    assert controlled.states(1) == [Delivery.DELIVERED]


def test_an_object_that_was_lost_without_an_answer_is_sent_again(
    vtn: Vtn, controlled: Controlled
) -> None:
    vtn.tricks += [Trick(500, silent=True)]
    name = controlled.signal()

    controlled.send()

    assert vtn.names() == [name]
    assert vtn.attempted == [name, name]


def test_a_restart_in_between_sends_no_duplicate(vtn: Vtn, controlled: Controlled) -> None:
    vtn.tricks += [Trick(500, taken=True)]
    name = controlled.signal()
    controlled.sender.step()
    assert vtn.names() == [name]

    controlled.reopen()
    controlled.send()

    assert vtn.names() == vtn.attempted == [name]
    assert controlled.states(1) == [Delivery.DELIVERED]


def test_it_is_found_among_many_of_others(vtn: Vtn, controlled: Controlled) -> None:
    vtn.tricks += [Trick(taken=True, silent=True)]
    controlled.signal()
    for at in range(120):
        event = {
            "programID": PROGRAM,
            "eventName": f"other-{at}",
            "intervalPeriod": {"start": "2026-01-01T00:00:00Z", "duration": "PT900S"},
            "intervals": [],
        }
        vtn.keep("/events", event)

    controlled.send()

    assert len(vtn.attempted) == 1
    assert controlled.states(1) == [Delivery.DELIVERED]
    assert sum(path.startswith("/events?") for _, path in vtn.requests) == 3


def test_a_vtn_that_is_away_gets_the_newest_when_it_comes_back(tmp_path: Path) -> None:
    port = spare_port()
    make_identity_in(tmp_path / "vtn")
    controlled = Controlled(tmp_path, f"https://localhost:{port}", tmp_path / "vtn" / "ca.pem")
    controlled.signal()
    controlled.send(3)
    assert set(controlled.seen.failures) == {Failure.UNREACHABLE}

    with serving_vtn(tmp_path / "vtn", now=lambda: START, vtn=Vtn(lambda: START), port=port) as vtn:
        newest = controlled.signal()
        controlled.send()
        assert vtn.names() == vtn.attempted == [newest]
    controlled.close()


def make_identity_in(folder: Path) -> None:
    folder.mkdir()
    make_identity(folder)


def test_a_vtn_of_another_authority_is_never_sent_anything(tmp_path: Path, vtn: Vtn) -> None:
    make_identity_in(tmp_path / "other")
    controlled = Controlled(tmp_path, vtn.url, tmp_path / "other" / "ca.pem")
    controlled.signal()

    controlled.send(5)

    assert vtn.requests == []
    assert set(controlled.seen.failures) == {Failure.UNREACHABLE}
    assert controlled.states(1) == [Delivery.PENDING]
    controlled.close()


def test_without_an_authority_of_its_own_the_systems_are_asked(tmp_path: Path, vtn: Vtn) -> None:
    controlled = Controlled(tmp_path, vtn.url, None)
    controlled.signal()
    controlled.send(2)
    assert vtn.requests == []
    controlled.close()


def section(vtn: Vtn, folder: Path) -> str:
    (folder / "vtn.secret").write_text(SECRET)
    return (
        f'\n[vtn]\nurl = "{vtn.url}"\ntoken_url = "{vtn.url}/auth/token"\nclient_id = "{CLIENT}"\n'
        f'client_secret_file = "vtn.secret"\nca = "{vtn.ca}"\nprogram_id = "{PROGRAM}"\n'
        f'report_event = "{REPORT_EVENT}"\n'
    )


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_running_controller_sends_what_it_signals(
    tmp_path: Path, vtn: Vtn, capfd: pytest.CaptureFixture[str]
) -> None:
    with ControlledCity.create(tmp_path, start=False) as city:
        city.add_section(section(vtn, city.paths.role("controller")))
        city.start_totals()
        city.start_controller()
        city.release(0, 1_100_000)

        city.until(lambda signal: signal.level == 3)
        shown = city.until(lambda signal: signal.openadr[0].delivery is Shown.DELIVERED)

        assert json.loads(shown.openadr[0].json)["eventName"] in vtn.names()
        eventually(lambda: len(vtn.names("/reports")) == 1)
    assert SECRET not in "".join(capfd.readouterr())


def test_a_vtn_that_does_not_answer_delays_no_signal(tmp_path: Path, vtn: Vtn) -> None:
    held = threading.Event()
    vtn.tricks += [Trick(wait=held)]
    with ControlledCity.create(tmp_path, start=False) as city:
        city.add_section(section(vtn, city.paths.role("controller")))
        city.start_totals()
        city.start_controller()
        eventually(lambda: len(vtn.attempted) == 1)

        for at, power in enumerate((500_000, 930_000, 1_100_000)):
            city.release(at, power)
            city.until_window(at)

        newest = city.signals()[-1]
        assert (newest.level, vtn.names()) == (3, [])
        assert newest.openadr[0].delivery is Shown.PENDING
        held.set()
        name = json.loads(newest.openadr[0].json)["eventName"]
        eventually(lambda: name in vtn.names())
        # What came in between was overtaken.
        assert len([one for one in vtn.attempted if "-w" not in one]) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("https://", "http://"), "vtn.url"),
        (("localhost:", "u:p@localhost:"), "vtn.url"),
        (('"\ntoken_url', '#"\ntoken_url'), "vtn.url"),
        (('"\ntoken_url', '?"\ntoken_url'), "vtn.url"),
        (('/auth/token"', '/auth token"'), "vtn.token_url"),
        (('/auth/token"', '/auth\\ntoken"'), "vtn.token_url"),
        (('program_id = "city-dr"', 'program_id = "city dr"'), "1 to 128 letters"),
        (('client_id = "gridveil-controller"\n', ""), "belong together"),
        (("vtn.secret", "nothing"), "client_secret_file"),
        (("ca.pem", "nothing"), "vtn.ca"),
        (("report_event", "report_events"), "report_events"),
    ],
)
def test_a_section_that_is_not_right_is_named(
    tmp_path: Path, vtn: Vtn, change: tuple[str, str], named: str
) -> None:
    with ControlledCity.create(tmp_path, start=False) as city:
        config = city.config_file
        config.write_text(config.read_text().replace("development = true", "development = false"))
        text = section(vtn, city.paths.role("controller"))
        assert change[0] in text
        city.add_section(text.replace(*change))
        with pytest.raises(MalformedInput, match=named) as refused:
            ControllerConfig.load(config)
    assert refused.value.reason in {Reason.CONFIG_INVALID, Reason.FIELD_FORMAT}


def test_plain_http_is_for_development_on_this_machine(tmp_path: Path, vtn: Vtn) -> None:
    with ControlledCity.create(tmp_path, start=False) as city:
        text = section(vtn, city.paths.role("controller")).replace("https://", "http://")
        city.add_section(text)
        assert ControllerConfig.load(city.config_file).vtn is not None
        city.config_file.write_text(
            city.config_file.read_text().replace("localhost", "vtn.example")
        )
        with pytest.raises(MalformedInput, match=r"vtn\.url"):
            ControllerConfig.load(city.config_file)


def test_an_empty_secret_is_refused_at_the_start(tmp_path: Path, vtn: Vtn) -> None:
    (tmp_path / "secret").write_text("\n")
    access = VtnAccess(vtn.url, vtn.url, CLIENT, tmp_path / "secret", None, vtn.ca)
    with pytest.raises(MalformedInput, match="client_secret_file"):
        VtnClient(access)
