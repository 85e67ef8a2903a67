"""The command line: what it teaches, how it refuses, and what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from gridveil.cli import arguments, extensions
from gridveil.cli.app import app
from gridveil.cli.output import ExitCode, exit_code, one_line
from gridveil.protocol.errors import (
    Conflict,
    Exhausted,
    GridveilError,
    IntegrityLost,
    InternalFault,
    MalformedInput,
    NotAllowed,
    NotAuthentic,
    NotFound,
    Reason,
    Unavailable,
    WrongState,
)

RUNNER = CliRunner()
WIDE = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def all_commands(group: Any = None, path: str = "gridveil") -> Iterator[tuple[str, Any]]:
    """Every command there is, with what is typed for it; those of services as well."""
    group = group or get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        typed = f"{path} {name}"
        if isinstance(command, TyperGroup):
            yield from all_commands(command, typed)
        else:
            yield typed, command


def test_every_command_teaches_by_an_example() -> None:
    commands = dict(all_commands())
    assert {"gridveil init", "gridveil version", "gridveil totals serve"} <= set(commands)
    assert {f"gridveil totals {name}" for name in ("get", "list", "watch", "verify")} <= set(
        commands
    )
    assert {f"gridveil meters {name}" for name in ("enrol", "withdraw", "simulate")} <= set(
        commands
    )
    for typed, command in commands.items():
        paragraphs = (command.help or "").split("\n\n")
        assert f"Example: {typed}" in (command.help or ""), typed
        assert len(paragraphs) >= 2, typed
        for option in command.params:
            if option.name != "profile":
                assert option.help, f"{typed} {option.name}"


@pytest.mark.parametrize("group", [[], ["totals"], ["meters"]])
def test_help_explains_the_exit_codes(group: list[str]) -> None:
    shown = RUNNER.invoke(app, [*group, "--help"], env=WIDE).output
    for code in ExitCode:
        assert f" {code.value} " in shown


def test_version_names_protocol_and_limits() -> None:
    shown = RUNNER.invoke(app, ["version"]).output
    assert "gridveil 0.1.0" in shown
    assert "protocol gridveil/v1" in shown

    found = json.loads(RUNNER.invoke(app, ["version", "--json"]).output)
    assert found["packages"]["gridveil"] == "0.1.0"
    assert found["protocol"] == "gridveil/v1"
    default, large = found["parameter_sets"]
    assert (default["name"], default["default"]) == ("ckks-2048", True)
    assert (default["ciphertext_bytes"], default["meters_per_lane"]) == (17_408, 16_384)
    assert (large["name"], large["default"]) == ("ckks-4096", False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WrongState(Reason.NOT_RELEASED, ""), 1),
        (NotFound(Reason.NOT_FOUND, ""), 1),
        (NotAuthentic(Reason.KEY_NOT_PINNED, ""), 1),
        (IntegrityLost(Reason.LOG_CORRUPT, ""), 1),
        (MalformedInput(Reason.CONFIG_INVALID, ""), 2),
        (MalformedInput(Reason.WINDOW_MISALIGNED, ""), 2),
        (Unavailable(Reason.UNREACHABLE, ""), 3),
        (Exhausted(Reason.OVERLOADED, ""), 3),
        (NotAllowed(Reason.ROLE_NOT_ALLOWED, ""), 4),
        (NotAuthentic(Reason.BAD_IDENTITY, ""), 4),
        (Conflict(Reason.METER_EXISTS, ""), 4),
        (InternalFault(Reason.INTERNAL, ""), 4),
    ],
)
def test_every_refusal_has_its_exit_code(error: GridveilError, code: int) -> None:
    assert exit_code(error) == code


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text("city_id = 1\n")
    for profile in ("nowhere.toml", str(tmp_path)):
        ended = RUNNER.invoke(app, ["totals", "list", "--profile", profile])
        assert ended.exit_code == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith("CONFIG_INVALID: ")
        assert ended.stderr.count("\n") == 1


def test_what_a_service_wrote_cannot_steer_the_terminal() -> None:
    shown = one_line(NotFound(Reason.NOT_FOUND, "\x1b[2J gone\r\nOK: all is well\x07"))
    assert shown == "NOT_FOUND: [2J gone OK: all is well"


def test_a_missing_key_file_is_one_line(tmp_path: Path) -> None:
    city = tmp_path / "city"
    assert RUNNER.invoke(app, ["init", str(city)]).exit_code == 0
    (city / "operator" / "tls" / "key.pem").unlink()
    ended = RUNNER.invoke(app, ["totals", "list", "--profile", str(city / "operator")])
    assert ended.exit_code == 2
    assert "tls/key.pem: No such file or directory" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_profile_may_come_from_the_environment(tmp_path: Path) -> None:
    profile = {"GRIDVEIL_PROFILE": str(tmp_path / "there.toml")}
    ended = RUNNER.invoke(app, ["totals", "list"], env=profile)
    assert ended.stderr == "CONFIG_INVALID: there.toml does not exist\n"


@pytest.mark.parametrize(
    "typed",
    [["nonsense"], ["totals", "nonsense"], ["totals", "get"], ["totals", "watch", "--count", "0"]],
)
def test_wrong_usage_ends_with_2(typed: list[str]) -> None:
    assert RUNNER.invoke(app, typed, env={"GRIDVEIL_PROFILE": "x"}).exit_code == 2


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("1777896900", 1_777_896_900),
        ("2026-05-04T12:15Z", 1_777_896_900),
        ("2026-05-04T12:15", 1_777_896_900),
        ("2026-05-04T14:15+02:00", 1_777_896_900),
        ("2026-05-04", 1_777_852_800),
    ],
)
def test_a_window_is_named_by_its_start(typed: str, seconds: int) -> None:
    assert arguments.parse_window(typed) == seconds


@pytest.mark.parametrize("typed", ["", "noon", "-900", "1e9", "٣", "2026-13-01"])
def test_what_is_no_time_is_refused(typed: str) -> None:
    with pytest.raises(MalformedInput) as refused:
        arguments.parse_window(typed)
    assert refused.value.reason is Reason.WINDOW_MISALIGNED


def run(program: str, *typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *typed], capture_output=True, text=True, check=False
    )


HIDE = """
import sys
hidden, *typed = sys.argv[1:]
sys.modules[hidden] = None
sys.argv = ["gridveil", *typed]
from gridveil.cli import main
main()
"""


@pytest.mark.parametrize(
    ("hidden", "typed", "wanted"),
    [
        ("gridveil_services.keyholder.cli", ["keyholder", "serve"], "gridveil-services[keyholder]"),
        ("gridveil_services.totals.cli", ["totals", "serve", "--config", "x"], "gridveil-services"),
        ("hdrh", ["loadtest", "--meters", "100", "--windows", "1"], "gridveil[loadtest]"),
        ("river", ["totals", "watchdog", "--totals", "x"], "gridveil[watchdog]"),
    ],
)
def test_a_command_that_misses_its_modules_says_what_to_install(
    hidden: str, typed: list[str], wanted: str
) -> None:
    ended = run(HIDE, hidden, *typed)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert hidden in ended.stderr
    assert f"pip install '{wanted}'" in ended.stderr


def test_help_survives_a_service_that_cannot_be_imported() -> None:
    ended = run(HIDE, "gridveil_services.keyholder.cli", "--help")
    assert ended.returncode == 0
    assert "Not available here" in ended.stdout


def test_an_extension_without_a_distribution_is_still_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = EntryPoint("lost", "gridveil_lost.cli:app", extensions.GROUP)
    monkeypatch.setattr(extensions, "extensions", lambda: {"lost": lost})
    ended = RUNNER.invoke(app, ["lost", "anything", "--at-all"])
    assert ended.exit_code == 2
    assert ended.stderr == "CONFIG_INVALID: gridveil lost needs the module gridveil_lost\n"


LOADED = """
import sys
sys.argv = ["gridveil", *sys.argv[1:]]
from gridveil.cli import main
try:
    main()
except SystemExit:
    pass
roots = ("gridveil", "gridveil_services", "river", "tenseal")
print("loaded", *(name for name in sys.modules if name.split(".")[0] in roots))
"""


@pytest.mark.parametrize(
    ("typed", "absent"),
    [
        (["version"], ("gridveil_services.", "tenseal")),
        (["totals", "list", "--profile", "x"], ("gridveil_services.", "tenseal", "river")),
        (["totals", "watchdog", "--help"], ("gridveil_services.", "tenseal", "river")),
        (["loadtest", "--help"], ("gridveil_services.", "tenseal")),
        (
            ["totals", "serve", "--help"],
            ("gridveil_services.keyholder", "gridveil_services.aggregator", "tenseal"),
        ),
        (
            ["keyholder", "serve", "--help"],
            ("gridveil_services.aggregator", "gridveil_services.totals"),
        ),
    ],
)
def test_a_command_loads_what_it_needs_and_no_other_service(
    typed: list[str], absent: tuple[str, ...]
) -> None:
    loaded = run(LOADED, *typed).stdout.splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert "gridveil.cli" in loaded
    assert [name for name in loaded if name.startswith(absent)] == []


def test_init_makes_a_city_and_says_how_to_go_on(tmp_path: Path) -> None:
    city = tmp_path / "springfield"
    typed = ["init", str(city), "--register", "gas_wh:Wh:9", "--min-cohort", "120"]
    typed += ["--ports", "totals=7003,keyholder=7001,aggregator=7002", "--entry-audience", "nobody"]
    typed += ["--noise", "laplace:0.1:9.6"]

    ended = RUNNER.invoke(app, typed)

    assert ended.exit_code == 0, ended.output
    config = (city / "keyholder" / "keyholder.toml").read_text()
    assert 'name = "gas_wh"' in config
    assert 'listen = "127.0.0.1:7001"' in config
    assert 'entry_audience = "nobody"' in config
    assert "epsilon_per_window = 0.1\nepsilon_per_day = 9.6\n" in config
    for service in ("keyholder", "aggregator", "totals"):
        made = city / service / f"{service}.toml"
        assert made.exists()
        assert f"gridveil {service} serve --config {made}" in ended.stdout
    assert f"gridveil meters enrol --profile {city}/registrar/profile.toml" in ended.stdout
    assert "--count 120" in ended.stdout


@pytest.mark.parametrize(
    "typed",
    [
        ["--register", "gas"],
        ["--register", "Gas:Wh:1"],
        ["--register", "gas:Wh:-1"],
        ["--ports", "many"],
        ["--ports", "keyholder=1"],
        ["--ports", "65535"],
        ["--entry-audience", "everybody"],
        ["--noise", "laplace"],
        ["--noise", "none:1:1"],
        ["--noise", "laplace:much:1"],
        ["--noise", "laplace:2:1"],
        ["--noise", "gaussian:nan:1"],
        ["--parameter-set", "ckks-8192"],
        ["--min-cohort", "99"],
        ["--window", "900s"],
    ],
)
def test_init_refuses_what_it_does_not_understand(tmp_path: Path, typed: list[str]) -> None:
    ended = RUNNER.invoke(app, ["init", str(tmp_path / "city"), *typed])
    assert ended.exit_code == 2
    assert not (tmp_path / "city").exists()
    assert "Traceback" not in ended.output
