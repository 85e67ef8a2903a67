"""One state folder in two places: what still holds, and what does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridveil_services.aggregator.store.interface import Committed, Known, Phase, StoreFailed
from tests.contract.redis_lanes import meter_id, phase, receipt, sum_of
from tests.contract.stores import START, RedisHarness, batch, make_window
from tests.contract.test_store_redis_loss import put_back
from tests.contract.test_store_redis_sharing import dumped
from tests.support.redis_servers import NEEDED

pytestmark = NEEDED


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisHarness, RedisHarness]]:
    """Two aggregators, the second from a copy of the first one's folder, with its name."""
    original = RedisHarness(tmp_path / "original")
    original.store.open_window(make_window())
    original.close()
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    original.reopen()
    copy = RedisHarness(tmp_path / "copy", fresh=False)
    assert copy.redis._replica.name == original.redis._replica.name
    yield original, copy
    copy.close()
    original.close()


def test_the_earlier_of_two_with_one_name_stops_at_its_next_look(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    original, copy = pair
    with pytest.raises(StoreFailed, match="copy of this one's state"):
        original.store.follow()
    with pytest.raises(StoreFailed):
        original.store.commit([batch([1])], 77)
    assert copy.store.follow()
    assert copy.store.commit([batch([1])], 77) == [Committed(77)]


def test_one_that_starts_again_is_no_copy_of_itself(tmp_path: Path) -> None:
    harness = RedisHarness(tmp_path)
    for _ in range(2):
        harness.close()
        harness.reopen()
        assert harness.store.follow()
        assert harness.store.follow()
    harness.close()


def test_two_with_one_name_count_each_report_once_until_one_of_them_looks(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    original, copy = pair
    assert original.store.commit([batch([1])], 77) == [Committed(77)]
    assert copy.store.commit([batch([2])], 78) == [Committed(78)]
    assert copy.store.commit([batch([1])], 79) == [Known({meter_id(1): receipt(1, 77)})]
    assert original.store.seal(START)
    assert not copy.store.seal(START)
    for each in pair:
        assert each.store.vouched(START)
        assert each.store.lane_sums(START) == [sum_of(1, 2)]
    assert copy.store.settle(START, Phase.RELEASED)
    assert not original.store.settle(START, Phase.REFUSED)
    assert phase(original) is Phase.RELEASED


def test_what_redis_lost_of_a_copy_is_not_missed_where_the_original_vouches_first(
    pair: tuple[RedisHarness, RedisHarness],
) -> None:
    """The voucher is the name's, not the journal's: this is why a folder must not be copied."""
    original, copy = pair
    client: Any = original.clients[0]
    original.store.commit([batch([1])], 77)
    before = dumped(client)
    copy.store.commit([batch([2])], 78)
    put_back(client, before)
    assert original.store.seal(START)
    assert original.store.vouched(START)
    assert original.store.lane_sums(START) == [sum_of(1)]
    copy.store.follow()
    assert copy.store.vouched(START)
