"""Generate the Python stubs of protos/ into gridveil.protocol.v1.

The protos name themselves gridveil/v1, as they appear on the wire; the Python package is
gridveil.protocol.v1. protoc cannot be told so, hence the module names are rewritten here. Method
names and the serialised descriptors, which belong to the wire, are left alone.

With --check, nothing is written: the committed stubs are compared with freshly generated ones.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import sysconfig
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "client" / "gridveil" / "protocol" / "v1"
INIT = '"""Stubs generated from protos/gridveil/v1 by scripts/generate_protos.py: do not edit."""\n'

WIRE_IMPORT = re.compile(r"^(from|import) gridveil\.v1\b", re.MULTILINE)
# The module that message classes say they are of: pickling a message looks it up.
WIRE_MODULE = re.compile(r"(?<=BuildTopDescriptorsAndMessages\(DESCRIPTOR, ')gridveil\.v1\.")
# Type stubs name other modules by their full path inside annotations too.
WIRE_REFERENCE = re.compile(r"\bgridveil\.v1\.(?=\w+_pb2\b)")


def include_directories() -> list[Path]:
    """Where imports are found: ours, then google.protobuf, then google.rpc as installed."""
    return [
        PROTOS,
        Path(str(resources.files("grpc_tools"))) / "_proto",
        Path(sysconfig.get_path("purelib")),
    ]


def python_modules(text: str, suffix: str) -> str:
    """Point what protoc generated at the Python package it is put into."""
    text = WIRE_IMPORT.sub(r"\1 gridveil.protocol.v1", text)
    text = WIRE_MODULE.sub("gridveil.protocol.v1.", text)
    if suffix == ".pyi":
        text = WIRE_REFERENCE.sub("gridveil.protocol.v1.", text)
    return text


def generate() -> dict[str, str]:
    """Return the generated files, by name."""
    sources = sorted(PROTOS.glob("gridveil/v1/*.proto"))
    if not sources:
        sys.exit(f"no .proto files under {PROTOS}")
    with tempfile.TemporaryDirectory() as directory:
        arguments = [
            "protoc",
            *(f"-I{include}" for include in include_directories()),
            # The type plugin is looked up beside the interpreter, whatever the PATH says.
            f"--plugin=protoc-gen-mypy_grpc={Path(sys.executable).parent / 'protoc-gen-mypy_grpc'}",
            f"--python_out={directory}",
            f"--pyi_out={directory}",
            f"--grpc_python_out={directory}",
            f"--mypy_grpc_out=quiet:{directory}",
            *(str(source) for source in sources),
        ]
        if protoc.main(arguments) != 0:
            sys.exit("protoc failed")
        files = {"__init__.py": INIT}
        for path in sorted(Path(directory).glob("gridveil/v1/*")):
            files[path.name] = python_modules(path.read_text("utf-8"), path.suffix)
    # grpc_python writes a module for every proto; one without a service holds nothing.
    for source in sources:
        if not re.search(r"^service ", source.read_text("utf-8"), re.MULTILINE):
            for suffix in (".py", ".pyi"):
                files.pop(f"{source.stem}_pb2_grpc{suffix}", None)
    return files


def committed() -> dict[str, str]:
    """Return the files that are there now, by name."""
    return {
        path.name: path.read_text("utf-8")
        for path in sorted(TARGET.glob("*"))
        if path.suffix in {".py", ".pyi"}
    }


def check(fresh: dict[str, str]) -> int:
    """Print how the committed stubs differ from fresh ones; 1 if they do."""
    present = committed()
    differing = [
        name
        for name in sorted(fresh.keys() | present.keys())
        if fresh.get(name) != present.get(name)
    ]
    for name in differing:
        sys.stdout.writelines(
            difflib.unified_diff(
                present.get(name, "").splitlines(keepends=True),
                fresh.get(name, "").splitlines(keepends=True),
                f"committed/{name}",
                f"generated/{name}",
            )
        )
    if differing:
        print(f"The stubs do not match protos/: {', '.join(differing)}. Run: make proto")
        return 1
    print(f"The {len(fresh)} stub files match protos/.")
    return 0


def write(fresh: dict[str, str]) -> None:
    """Put the stubs in place, and remove those of protos that are gone."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in committed().keys() - fresh.keys():
        (TARGET / name).unlink()
    for name, text in fresh.items():
        (TARGET / name).write_text(text, "utf-8")
    print(f"Wrote {len(fresh)} files to {TARGET.relative_to(ROOT)}.")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    arguments = parser.parse_args()
    fresh = generate()
    if arguments.check:
        return check(fresh)
    write(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
