"""docs/protocol.md says what the code does: its tables, domains, reasons and files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gridveil.protocol
from gridveil.outcomes import OUTCOMES, Ending
from gridveil.protocol.errors import Reason
from gridveil.protocol.parameter_sets import PARAMETER_SETS, parameter_set
from gridveil.protocol.v1 import report_pb2
from tests.vectors import generate

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_bounds_is_the_computed_one() -> None:
    stated = [row for row in rows(section("Parameter sets")) if len(row) == 7][2:]
    computed = []
    for name in PARAMETER_SETS:
        crypto, slots = parameter_set(name), 64
        while slots <= crypto.degree // 2:
            computed.append(
                [
                    f"`{name}`",
                    str(slots),
                    str(crypto.block(slots)),
                    f"{crypto.ciphertext_bytes(slots):,}",
                    f"{crypto.meters_by_wrap:,}",
                    f"{crypto.meters_by_noise(slots):,}",
                    f"{crypto.meters_per_lane(slots):,}",
                ]
            )
            slots *= 2
    assert stated == computed


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_moduli_and_roots_are_stated(name: str) -> None:
    crypto = parameter_set(name)
    assert str(crypto.modulus) in section("Parameter sets")
    assert str(crypto.root) in section("The ring in SEAL's form")


def test_every_domain_of_the_code_is_documented_and_no_other() -> None:
    folder = Path(next(iter(gridveil.protocol.__path__)))
    pattern = re.compile(r'"(gridveil/v1/[a-z-]+)"')
    used = {domain for path in folder.glob("*.py") for domain in pattern.findall(path.read_text())}
    assert set(pattern.findall(DOCUMENT)) == used


def test_every_answer_to_a_report_ends_as_documented() -> None:
    endings = {
        "settled": Ending.SETTLED,
        "repeat": Ending.RETRY,
        "give": Ending.GIVE_UP,
        "fetch": Ending.REFETCH_PARAMETERS,
    }
    stated: dict[Reason, Ending] = {}
    for reasons, _meaning, ending in rows(section("Submitting a report"))[2:]:
        for word in re.findall(r"\b[A-Z]+_[A-Z_]+|\bOVERLOADED|\bDRAINING|\b[A-Z]{8,}", reasons):
            stated[Reason(word)] = endings[ending.split()[0]]
    assert stated == {reason: OUTCOMES[reason] for reason in stated}
    unstated = {OUTCOMES[reason] for reason in set(Reason) - stated.keys()}
    assert unstated == {Ending.GIVE_UP}


def test_the_report_message_is_documented_field_by_field() -> None:
    fields = {f"{field.number} `{field.name}`" for field in report_pb2.Report.DESCRIPTOR.fields}
    assert fields <= {row[0] for row in rows(section("Messages"))}


def test_every_file_of_vectors_is_documented_and_every_documented_one_exists() -> None:
    documented = {
        name.replace("<set>", parameters)
        for name in re.findall(r"`([a-z_<>-]+)\.json`", section("Vectors"))
        for parameters in PARAMETER_SETS
    }
    assert documented == {path.stem for path in generate.FOLDER.glob("*.json")}


@pytest.mark.parametrize("target", re.findall(r"\]\(#([a-z-]+)\)", DOCUMENT))
def test_every_link_within_the_document_leads_somewhere(target: str) -> None:
    titles = re.findall(r"^## (.+)$", DOCUMENT, re.MULTILINE)
    assert target in {re.sub(r"[^a-z -]", "", t.lower()).replace(" ", "-") for t in titles}
