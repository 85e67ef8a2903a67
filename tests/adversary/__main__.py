"""The builds that are broken on purpose, a line each: what is taken out, and who notices.

Run: python -m tests.adversary
"""

from __future__ import annotations

from tests.adversary.mutants import MUTANTS


def main() -> None:
    """Print them."""
    for number, (name, mutant) in enumerate(MUTANTS.items(), 1):
        noticed = mutant.caught_by
        print(f"{number:3}  {name}: {noticed.file} -k '{noticed.select}'")


if __name__ == "__main__":
    main()
