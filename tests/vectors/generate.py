"""Write the test vectors, or with --check compare the committed ones with what the code makes.

Everything follows from inputs-*.json, which SEAL made once, and from constants. With --new-inputs
SEAL makes them anew; only do that when the wire format changes, for all vectors change with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent.parent))

Made = dict[str, dict[str, Any]]


def make() -> Made:
    """The content of every file, by name."""
    from gridveil.protocol.parameter_sets import PARAMETER_SETS
    from tests.vectors import log_steps, refusals, release_steps, steps

    made: Made = {
        "parameter_sets": steps.parameter_sets(),
        "slots": steps.slots(),
        "windows": steps.windows(),
        "generators": steps.generators(),
        "commitments": steps.commitments(),
        "roster": steps.roster(),
        "log": log_steps.log(),
        "refusals": refusals.refusals(),
    }
    for name in PARAMETER_SETS:
        made[f"city-{name}"] = steps.city_parameters(name)
        made[f"folding-{name}"] = steps.folding(name)
        made[f"reports-{name}"] = steps.reports(name)
        made[f"release-{name}"] = release_steps.release(name)
    wrong = refusals.misjudged(made["refusals"])
    if wrong:
        sys.exit("refused for another reason:\n" + "\n".join(wrong))
    return made


def path_of(name: str) -> Path:
    """Where a file of vectors is."""
    return FOLDER / f"{name}.json"


def encoded(content: dict[str, Any]) -> str:
    """The text of a file."""
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"


def load(name: str) -> dict[str, Any]:
    """A committed file."""
    loaded: dict[str, Any] = json.loads(path_of(name).read_text())
    return loaded


def differences(made: Made) -> list[str]:
    """The vectors that are not as committed, each by file and place."""
    found = []
    for name, content in made.items():
        if not path_of(name).exists():
            found.append(f"{name}: missing")
        elif path_of(name).read_text() != encoded(content):
            found.append(f"{name}{first_difference(load(name), json.loads(encoded(content)))}")
    kept = {path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith("inputs-")}
    return found + [f"{name}: no longer made" for name in sorted(kept - made.keys())]


def first_difference(old: Any, new: Any) -> str:
    """Where two JSON values differ first, as a path."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            if old[key] != new[key]:
                return f".{key}{first_difference(old[key], new[key])}"
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            if one != other:
                return f"[{at}]{first_difference(one, other)}"
    return ""


def renew_inputs() -> None:
    """Let SEAL make new keys and ciphertexts."""
    from gridveil.protocol.parameter_sets import PARAMETER_SETS
    from tests.vectors.material import new_inputs

    for name in PARAMETER_SETS:
        path_of(f"inputs-{name}").write_text(encoded(dict(new_inputs(name))))


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    parser.add_argument("--new-inputs", action="store_true", help="let SEAL make new inputs first")
    chosen = parser.parse_args(arguments)
    if chosen.new_inputs:
        renew_inputs()
    made = make()
    if chosen.check:
        drifting = differences(made)
        for name in drifting:
            print(f"drift: {name}")
        print("The vectors differ from the code." if drifting else "The vectors match the code.")
        return 1 if drifting else 0
    for name, content in made.items():
        path_of(name).write_text(encoded(content))
    print(f"Wrote {len(made)} files of vectors.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
