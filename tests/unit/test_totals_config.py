"""A wrong ``totals.toml`` is refused, and the refusal names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridveil.protocol.errors import MalformedInput, Reason
from gridveil_services.totals.config import TotalsConfig

GOOD = f"""
city_id = "{"0f" * 16}"
identity_key = "{"1f" * 32}"
development = true
listen = "127.0.0.1:0"
published = "../keyholder/published"
window_length = 900

[tls]
ca = "tls/ca.pem"
certificate = "tls/cert.pem"
key = "tls/key.pem"
"""


def loaded(folder: Path, text: str) -> TotalsConfig:
    path = folder / "totals.toml"
    path.write_text(text)
    return TotalsConfig.load(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD)
    assert config.published == tmp_path / "../keyholder/published"
    assert config.tls.key == tmp_path / "tls/key.pem"
    assert config.city_id == bytes.fromhex("0f" * 16)
    assert config.development


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("window_length = 900", "window_length = 59", "window_length"),
        ("window_length = 900", "window_length = 86401", "window_length"),
        ("window_length = 900", "window_length = 900.5", "window_length"),
        ("window_length = 900", 'window_length = "900"', "window_length"),
        ("window_length = 900", "", "window_length"),
        ("window_length = 900", "window_lengths = 900", "window_lengths"),
        ('"0f', '"zz', "city_id"),
        ('"1f', '"', "identity_key"),
        ("listen = ", "listened = ", "listen"),
        ('ca = "tls/ca.pem"', "", "tls"),
        ("[tls]", "[tls", "totals.toml"),
        ("development = true", "development = 1", "development"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, before: str, after: str, named: str) -> None:
    assert before in GOOD
    with pytest.raises(MalformedInput) as refused:
        loaded(tmp_path, GOOD.replace(before, after, 1))
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert named in refused.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match=r"nothing\.toml does not exist"):
        TotalsConfig.load(tmp_path / "nothing.toml")


def test_metrics_are_served_where_a_section_says_and_nowhere_else(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD).metrics is None
    config = loaded(tmp_path, GOOD + '\n[metrics]\nlisten = "127.0.0.1:9464"\n')
    assert config.metrics == ("127.0.0.1", 9464)


@pytest.mark.parametrize("line", ["", 'listen = "9464"', 'listen = "a:1"\npath = "/x"'])
def test_a_wrong_metrics_section_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        loaded(tmp_path, f"{GOOD}\n[metrics]\n{line}\n")
    assert refused.value.reason is Reason.CONFIG_INVALID
