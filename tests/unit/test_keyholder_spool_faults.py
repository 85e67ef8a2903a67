"""A disk that fails while a release comes in: nothing counts that may not be there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from gridveil.protocol.errors import Unavailable
from tests.support.keyholders import prepare_city


def test_a_release_whose_sync_failed_is_sent_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel drops pages that it could not write: none of the entries counts as held."""
    city = prepare_city(tmp_path / "city")

    def drops_the_page(descriptor: int) -> NoReturn:
        os.pwrite(descriptor, bytes(4096), 0)
        raise OSError(errno.EIO, "input/output error")

    with city.open() as keyholder:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", drops_the_page)
            with pytest.raises(Unavailable):
                keyholder.releases.release(city.release.messages())
        assert keyholder.releases.progress(city.window, city.release.digest) == 0
        assert not keyholder.releases.release(city.release.messages()).replayed
    assert city.totals()[city.window].count == len(city.reports)
