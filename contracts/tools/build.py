"""Compile the contracts with forge and write `contracts/artifacts/<Name>.json`; or check that they are up to date.

    python contracts/tools/build.py                  compile and write (needs Node and `npm install --no-save`)
    python contracts/tools/build.py --check          compile, compare, write nothing; status 1 names each difference
    python contracts/tools/build.py --check-sources  compare hashes only: no Node, no compiler

Artifacts are deterministic: sorted keys, no paths, no metadata hash in the bytecode. Source: DESIGN section 7.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(FOLDER.parent))

from contracts.artifacts import CONTRACT_NAMES, source_hash, stale_artifacts  # noqa: E402
from contracts.tools.forge import run_forge  # noqa: E402

MAX_CODE_BYTES = 24_576  # EIP-170


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the contracts, or check the committed artifacts.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compile and compare with the committed artifacts")
    mode.add_argument("--check-sources", action="store_true", help="compare source hashes only (no Node needed)")
    arguments = parser.parse_args()

    if arguments.check_sources:
        return _report(list(stale_artifacts(FOLDER)))
    built = compile_contracts()
    if arguments.check:
        return _report(_differences(built) + [p for p in stale_artifacts(FOLDER) if "no such contract" in p])
    for name, text in built.items():
        (FOLDER / "artifacts" / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
        sys.stdout.write(f"wrote artifacts/{name}.json\n")
    return 0


def compile_contracts() -> dict[str, str]:
    """Fresh artifacts: contract name to JSON text. Exits with forge's output when it does not compile."""
    with tempfile.TemporaryDirectory() as out:
        cache = str(Path(out) / "cache")
        run = run_forge("build", "--force", "--out", out, "--cache-path", cache, "src", capture=True)
        if run.returncode != 0:
            sys.exit(f"forge build failed\n{run.stdout}{run.stderr}")
        sources = source_hash(FOLDER)
        return {name: _artifact(Path(out), name, sources) for name in CONTRACT_NAMES}


def _artifact(out: Path, name: str, sources: str) -> str:
    document: dict[str, Any] = json.loads((out / f"{name}.sol" / f"{name}.json").read_text(encoding="utf-8"))
    if document["bytecode"]["linkReferences"]:
        sys.exit(f"{name} has unlinked libraries; an artifact must deploy as it is")
    code_bytes = len(document["deployedBytecode"]["object"].removeprefix("0x")) // 2
    if code_bytes > MAX_CODE_BYTES:
        sys.exit(f"{name} has {code_bytes} bytes of code; chains accept {MAX_CODE_BYTES}")
    metadata = document["metadata"]
    settings = metadata["settings"]
    artifact = {
        "abi": document["abi"],
        "bytecode": document["bytecode"]["object"],
        "compiler": {
            "evmVersion": settings["evmVersion"],
            "optimizer": settings["optimizer"],
            "version": metadata["compiler"]["version"],
        },
        "contractName": name,
        "deployedBytecode": document["deployedBytecode"]["object"],
        "sourceHash": sources,
    }
    return json.dumps(artifact, indent=1, sort_keys=True) + "\n"


def _differences(built: dict[str, str]) -> list[str]:
    problems = []
    for name, text in built.items():
        path = FOLDER / "artifacts" / f"{name}.json"
        if not path.exists():
            problems.append(f"{name}: the artifact is missing")
            continue
        committed_text = path.read_text(encoding="utf-8")
        if committed_text == text:
            continue
        committed, fresh = json.loads(committed_text), json.loads(text)
        keys = sorted(k for k in committed.keys() | fresh.keys() if committed.get(k) != fresh.get(k))
        problems.append(f"{name}: {', '.join(keys) if keys else 'layout of the file'} differs from a fresh build")
    return problems


def _report(problems: list[str]) -> int:
    for problem in problems:
        sys.stderr.write(f"contracts/artifacts: {problem}\n")
    if problems:
        sys.stderr.write("run `make contracts` and commit the result\n")
        return 1
    sys.stdout.write("contracts/artifacts: up to date\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
