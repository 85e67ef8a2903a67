"""The import contracts hold, and would notice if they did not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"

HOMOMORPHIC = ("tenseal", "_tenseal_cpp", "_sealapi_cpp")
# Opening sums is the key-holder's alone.
DECODING = ("gridveil.protocol.decoding",)
AGGREGATOR = ("gridveil_services.aggregator",)
# A city without noise never loads what draws it.
NOISE = ("opendp",)
# An aggregator without Redis never loads its client.
REDIS = ("redis", "gridveil_services.aggregator.store.redis")
# Where no metrics are served, nothing counts.
COUNTING = ("prometheus_client",)
# Where no traces are sent, nothing traces.
TRACING = ("opentelemetry", "gridveil.tracing.otel")
# Only a gateway beside a real meter reads telegrams.
METERS = ("dsmr_parser", "dlms_cosem", "serial")
# Only what makes tables of totals.
TABLES = ("pyarrow", "pandas", "polars")
KEYHOLDER = ("gridveil_services.keyholder",)
TOTALS = ("gridveil_services.totals",)
# A controller that sends nothing loads nothing to send with, and forecasts only when it is asked.
SENDING = ("authlib", "httpx2")
FORECASTING = ("sklearn", "scipy")

ABSENT: dict[str, tuple[str, ...]] = {
    "gridveil_services.aggregator.serve": (
        *HOMOMORPHIC,
        *DECODING,
        *NOISE,
        *REDIS,
        *COUNTING,
        *TRACING,
        *KEYHOLDER,
        *TOTALS,
    ),
    "gridveil_services.totals.serve": (
        *HOMOMORPHIC,
        *DECODING,
        *NOISE,
        *COUNTING,
        *TRACING,
        *KEYHOLDER,
        *AGGREGATOR,
    ),
    "gridveil_services.controller.serve": (
        *HOMOMORPHIC,
        *DECODING,
        *NOISE,
        *COUNTING,
        *TRACING,
        *SENDING,
        *FORECASTING,
        *KEYHOLDER,
        *AGGREGATOR,
        *TOTALS,
    ),
    "gridveil_services.keyholder.serve": (*NOISE, *COUNTING, *TRACING, *AGGREGATOR),
    "gridveil.meter": (*METERS, *NOISE, *TRACING),
    "gridveil.tables": (*TABLES, *METERS, *HOMOMORPHIC, *DECODING, *NOISE, *TRACING),
    "gridveil.operator": (*TABLES, *METERS, *HOMOMORPHIC, *DECODING, *NOISE, *TRACING),
    "gridveil.cli": (*TABLES, *METERS, *HOMOMORPHIC, *DECODING, *NOISE, *TRACING),
}


def contract_name(contract_id: str) -> str:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = configuration["tool"]["importlinter"]["contracts"]
    return next(str(contract["name"]) for contract in contracts if contract["id"] == contract_id)


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    # The packages of this directory come before the installed ones.
    paths = [str(directory / "client"), str(directory / "services")]
    return subprocess.run(
        [LINT_IMPORTS, "--no-cache"],
        cwd=directory,
        # Wide enough that no contract's name is wrapped.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def outcome(run: subprocess.CompletedProcess[str], contract_id: str) -> str:
    """Return what the summary says of a contract: KEPT or BROKEN."""
    name = contract_name(contract_id)
    line = next((line for line in run.stdout.splitlines() if line.startswith(name)), None)
    assert line is not None, run.stdout + run.stderr
    return line.removeprefix(name).split()[0]


@pytest.fixture
def copied_tree(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("client/gridveil", "services/gridveil_services"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold() -> None:
    run = lint_imports(ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract_id"),
    [
        ("services/gridveil_services/aggregator", "import gridveil_services.keyholder", "roles"),
        ("services/gridveil_services/keyholder", "import gridveil_services.totals", "roles"),
        ("services/gridveil_services/aggregator", "import tenseal", "keyless"),
        ("services/gridveil_services/totals", "import tenseal", "keyless"),
        ("services/gridveil_services/rpc", "import tenseal", "keyless"),
        (
            "services/gridveil_services/totals",
            "from gridveil.protocol import decoding",
            "decoding",
        ),
        (
            "services/gridveil_services/keyholder",
            "from gridveil.protocol import decoding",
            "decoding",
        ),
        ("services/gridveil_services/keyholder", "import opendp.prelude", "noise"),
        ("services/gridveil_services/totals", "import opendp", "noise"),
        ("services/gridveil_services/aggregator", "import redis", "redis"),
        ("services/gridveil_services/aggregator/store", "from redis import Redis", "redis"),
        ("services/gridveil_services/rpc", "import prometheus_client", "metrics"),
        ("services/gridveil_services/controller", "import gridveil_services.totals", "roles"),
        ("services/gridveil_services/controller", "import tenseal", "keyless"),
        ("services/gridveil_services/controller/vtn", "import httpx2", "vtn"),
        ("services/gridveil_services/keyholder", "import prometheus_client", "metrics"),
        ("services/gridveil_services/rpc", "from opentelemetry import trace", "tracing"),
        ("client/gridveil/tracing", "import opentelemetry", "tracing"),
        ("services/gridveil_services/totals", "import polars", "tables"),
        ("client/gridveil/tables", "import pyarrow", "tables"),
        ("client/gridveil/protocol", "import opendp", "protocol"),
        ("client/gridveil/protocol", "import grpc", "protocol"),
        ("client/gridveil/protocol", "import gridveil.cli", "protocol"),
        ("client/gridveil/cli", "import gridveil_services.totals", "client"),
    ],
)
def test_contract_breaks(copied_tree: Path, module: str, line: str, contract_id: str) -> None:
    # rpc is of use to the aggregator only if it is imported, which an empty one is not.
    if module.endswith("/rpc"):
        aggregator = copied_tree / "services/gridveil_services/aggregator/__init__.py"
        with aggregator.open("a") as source:
            source.write("\nimport gridveil_services.rpc\n")
    with (copied_tree / module / "__init__.py").open("a") as source:
        source.write(f"\n{line}\n")

    run = lint_imports(copied_tree)

    assert run.returncode != 0, run.stdout
    assert outcome(run, contract_id) == "BROKEN", run.stdout


@pytest.mark.parametrize("module", ABSENT)
def test_role_modules(module: str) -> None:
    """What a role must not have, its process has not even loaded."""
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert module in loaded
    unwanted = [
        name for name in loaded if any(f"{name}.".startswith(f"{a}.") for a in ABSENT[module])
    ]
    assert not unwanted
