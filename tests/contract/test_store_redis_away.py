"""An aggregator that was away asks the others before it acknowledges anything again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridveil.protocol.errors import Unavailable
from gridveil_services.aggregator.store.interface import Committed, Known, Phase
from gridveil_services.aggregator.store.redis import freshness, scripts
from tests.contract.redis_lanes import KEYS, meter_id, receipt
from tests.contract.stores import START, RedisHarness, batch
from tests.contract.stores import make_window as window_of
from tests.contract.test_store_redis_loss import put_back
from tests.contract.test_store_redis_takeover import before_call
from tests.support.redis_servers import NEEDED

pytestmark = NEEDED
ASKS = "has to find out first"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisHarness, RedisHarness]]:
    """One leads and has stored a report; two takes part."""
    one = RedisHarness(tmp_path / "one")
    one.store.open_window(window_of())
    two = RedisHarness(tmp_path / "two", fresh=False)
    two.store.open_window(window_of())
    one.store.commit([batch([1])], 77)
    yield one, two
    two.close()
    one.close()


def replace_the_servers(harness: RedisHarness) -> None:
    """The window's record says that it was opened on others."""
    harness.clients[0].hset(KEYS.window(START), "lineage", "others")


def go_and_come_back(harness: RedisHarness) -> None:
    harness.close()
    harness.reopen()


def come_back_to_others(harness: RedisHarness) -> None:
    replace_the_servers(harness)
    go_and_come_back(harness)


def test_it_acknowledges_at_once_where_the_servers_are_the_same(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    _, two = pair
    go_and_come_back(two)
    assert two.store.commit([batch([2])], 78) == [Committed(78)]
    assert two.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}


def test_it_waits_for_the_others_word_where_they_were_replaced(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    one, two = pair
    come_back_to_others(two)
    with pytest.raises(Unavailable, match=ASKS):
        two.store.commit([batch([2])], 78)
    with pytest.raises(Unavailable, match=ASKS):
        two.store.known(START, [meter_id(1)])
    two.store.follow()
    with pytest.raises(Unavailable, match=ASKS):
        two.store.commit([batch([2])], 78)
    assert one.store.count(START) == 1
    one.store.follow()
    two.store.follow()
    assert two.store.commit([batch([2])], 78) == [Committed(78)]
    assert two.store.known(START, [meter_id(1)]) == {meter_id(1): receipt(1, 77)}


def test_who_was_there_all_the_time_goes_on(pair: tuple[RedisHarness, RedisHarness]) -> None:
    one, two = pair
    replace_the_servers(one)
    two.store.follow()
    assert two.store.commit([batch([2])], 78) == [Committed(78)]


def test_what_took_too_long_to_store_is_not_acknowledged(
    pair: tuple[RedisHarness, RedisHarness], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused in the middle of a commit: it cannot know any more whether the window was sealed."""
    one, _ = pair
    with monkeypatch.context() as paused:
        later = time.monotonic() + 60, time.time() + 60
        before_call(
            one, scripts.COMMIT, lambda: paused.setattr(freshness, "now", lambda: later), paused
        )
        with pytest.raises(Unavailable, match=ASKS):
            one.store.commit([batch([2])], 78)
    one.store.follow()
    assert one.store.commit([batch([2])], 79) == [Known({meter_id(2): receipt(2, 78)})]


def test_the_only_one_has_nobody_to_ask(tmp_path: Path) -> None:
    alone = RedisHarness(tmp_path)
    alone.store.open_window(window_of())
    come_back_to_others(alone)
    assert alone.store.commit([batch([1])], 77) == [Committed(77)]
    alone.close()


def test_a_question_that_the_servers_forgot_is_put_again(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    one, two = pair
    come_back_to_others(two)
    record = KEYS.window(START)
    client = one.clients[0]
    (asked,) = [name for name in client.hkeys(record) if name.startswith(b"i:")]
    question = client.hget(record, asked)
    client.hdel(record, asked)
    one.store.follow()
    two.store.follow()
    assert client.hget(record, asked) not in (None, question)
    one.store.follow()
    two.store.follow()
    assert two.store.commit([batch([2])], 78) == [Committed(78)]


def test_who_sealed_a_window_does_not_say_that_it_is_open(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    one, two = pair
    client = one.clients[0]
    before = {key: client.dump(key) for key in client.scan_iter()}
    assert one.store.seal(START)
    put_back(client, before)
    come_back_to_others(two)
    one.store.follow()
    two.store.follow()
    window = two.store.window(START)
    assert window is not None
    assert window.phase is Phase.POISONED
    assert not [name for name in client.hkeys(KEYS.window(START)) if name.startswith(b"o:")]
