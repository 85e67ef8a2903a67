"""A refusal that time heals says when."""

import pytest

from gridveil.protocol.errors import Reason, WrongState
from gridveil.protocol.windows import WindowRules

RULES = WindowRules(length=900, grace=300, early_leeway=60)


def test_who_comes_too_early_is_told_when_the_window_opens() -> None:
    with pytest.raises(WrongState) as refused:
        RULES.check_open(9_000, 9_000.0)
    assert refused.value.reason is Reason.WINDOW_TOO_EARLY
    assert refused.value.retry_after_s == 840
    RULES.check_open(9_000, 9_000.0 + 840)


def test_who_comes_too_late_is_not_told_to_come_back() -> None:
    with pytest.raises(WrongState) as refused:
        RULES.check_open(9_000, 10_200.0)
    assert refused.value.reason is Reason.WINDOW_CLOSED
    assert refused.value.retry_after_s is None
