"""Traces without a city: what is believed of a caller, what a section says, and what is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gridveil.profile import Profile
from gridveil.protocol.errors import MalformedInput, Reason
from gridveil.tracing.settings import TracingSection, TracingSettings
from gridveil.tracing.spans import make_tracer
from gridveil.tracing.traceparent import Caller, encode, parse
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.bootstrap.city import CityOptions, create_city
from gridveil_services.bootstrap.layout import CityPaths
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.totals.config import TotalsConfig

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"

CONFIGS: dict[str, Callable[[Path], AggregatorConfig | KeyHolderConfig | TotalsConfig]] = {
    "aggregator": AggregatorConfig.load,
    "keyholder": KeyHolderConfig.load,
    "totals": TotalsConfig.load,
}
PROFILE = f"""
city_id = "{"0f" * 16}"
identity_key = "{"1f" * 32}"

[tls]
ca = "tls/ca.pem"
certificate = "tls/cert.pem"
key = "tls/key.pem"
"""


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("03", True)])
def test_a_traceparent_names_a_span_of_a_trace(flags: str, sampled: bool) -> None:
    caller = parse([("user-agent", "x"), ("traceparent", f"00-{TRACE}-{SPAN}-{flags}")])
    assert caller == Caller(int(TRACE, 16), int(SPAN, 16), sampled)


def test_what_is_sent_is_what_is_read() -> None:
    for sampled in (False, True):
        caller = Caller(1, 2**64 - 1, sampled)
        assert len(encode(caller)) == 55
        assert parse([("traceparent", encode(caller))]) == caller


@pytest.mark.parametrize(
    "value",
    [
        "",
        GOOD.upper(),
        f"01-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"{GOOD}-00",
        f"{GOOD}\n",
        f" {GOOD}",
        GOOD.replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
        GOOD.encode(),
    ],
)
def test_any_other_traceparent_is_ignored(value: str | bytes) -> None:
    assert parse([("traceparent", value)]) is None


def test_a_traceparent_that_is_sent_twice_is_ignored() -> None:
    assert parse([("traceparent", GOOD), ("traceparent", GOOD)]) is None
    assert parse([]) is None


def test_a_section_says_where_traces_go_and_how_many() -> None:
    assert TracingSettings.of(None) is None
    plain = TracingSettings.of(TracingSection(endpoint="http://collector:4317"))
    assert plain == TracingSettings("collector:4317", secure=False, sample=1.0)
    section = TracingSection(endpoint="https://[::1]:4317/", sample=0.25)
    assert TracingSettings.of(section) == TracingSettings("[::1]:4317", secure=True, sample=0.25)


@pytest.mark.parametrize(
    ("endpoint", "sample", "named"),
    [
        ("collector:4317", 1, "tracing.endpoint"),
        ("http://collector", 1, "tracing.endpoint"),
        ("http://:4317", 1, "tracing.endpoint"),
        ("http://collector:99999", 1, "tracing.endpoint"),
        ("http://me:secret@collector:4317", 1, "tracing.endpoint"),
        ("http://collector:4317/v1/traces", 1, "tracing.endpoint"),
        ("http://collector:4317?a=b", 1, "tracing.endpoint"),
        ("file:///tmp/traces", 1, "tracing.endpoint"),
        ("http://collector:4317", -0.1, "tracing.sample"),
        ("http://collector:4317", 1.1, "tracing.sample"),
        ("http://collector:4317", float("nan"), "tracing.sample"),
    ],
)
def test_a_wrong_section_is_refused(endpoint: str, sample: float, named: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        TracingSettings.of(TracingSection(endpoint=endpoint, sample=sample))
    assert refused.value.reason is Reason.CONFIG_INVALID
    assert refused.value.metadata == {"field": named}
    assert "secret" not in str(refused.value)


def test_a_profile_may_have_the_section_with_known_keys_only(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(PROFILE)
    assert Profile.load(path).tracing is None
    section = '\n[tracing]\nendpoint = "http://127.0.0.1:4317"\n'
    path.write_text(f"{PROFILE}{section}sample = 0.5\n")
    assert Profile.load(path).tracing == TracingSettings("127.0.0.1:4317", False, 0.5)
    path.write_text(f"{PROFILE}{section}ratio = 0.5\n")
    with pytest.raises(MalformedInput, match="ratio"):
        Profile.load(path)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> CityPaths:
    return create_city(tmp_path_factory.mktemp("tracing") / "city", CityOptions(development=True))


@pytest.mark.parametrize("role", CONFIGS)
def test_a_service_may_have_the_section_with_known_keys_only(
    city: CityPaths, tmp_path: Path, role: str
) -> None:
    text, path = city.config(role).read_text(), tmp_path / f"{role}.toml"
    section = '\n[tracing]\nendpoint = "https://collector:4317"\n'
    found = []
    for tracing in ("", section, f"{section}sample = 0\n"):
        path.write_text(text + tracing)
        found.append(CONFIGS[role](path).tracing)
    assert found == [None, *(TracingSettings("collector:4317", True, s) for s in (1.0, 0.0))]
    for wrong in ("[tracing]", f"{section}headers = 1", f"{section}sample = 2"):
        path.write_text(f"{text}\n{wrong}\n")
        with pytest.raises(MalformedInput) as refused:
            CONFIGS[role](path)
        assert refused.value.reason is Reason.CONFIG_INVALID


def loaded(line: str) -> set[str]:
    """What a process has loaded that ran a line."""
    program = (
        "import sys\n"
        "from gridveil.tracing.settings import TracingSettings\n"
        "from gridveil.tracing.spans import make_tracer\n"
        f"{line}\nprint(*sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in run.stdout.split()}


def test_opentelemetry_is_loaded_only_where_traces_are_sent() -> None:
    settings = 'TracingSettings("127.0.0.1:1", False, 0.0)'
    assert "opentelemetry" not in loaded("make_tracer(None, 'meter').close()")
    assert "opentelemetry" in loaded(f"make_tracer({settings}, 'meter').close()")


def test_a_section_without_the_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gridveil.tracing.otel", None)
    with pytest.raises(MalformedInput, match="extra otel"):
        make_tracer(TracingSettings("127.0.0.1:1", secure=False, sample=1.0), "meter")
