"""The compiled contracts: ABI and bytecode, committed as package data, so that running a node needs Python only.

    load("BrokerCustody")      ABI and creation bytecode
    stale_artifacts(folder)    which committed artifacts were not built from the sources beside them (no Node needed)

`contracts/tools/build.py` writes them; each carries a hash over every source and every setting that changes bytecode.
Invariant: an artifact is read-only after it was built. Source: DESIGN section 7; TOOLCHAIN "forge without downloads".
"""

import json
import tomllib
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

CONTRACT_NAMES = ("Adjudicator", "BrokerCustody", "CustodyFactory", "TestToken", "XlnCollateral")

# Settings of foundry.toml, and packages, that change the bytecode. Fuzz runs and lints do not.
_COMPILER_SETTINGS = (
    "bytecode_hash",
    "cbor_metadata",
    "evm_version",
    "optimizer",
    "optimizer_runs",
    "remappings",
    "via_ir",
)
_COMPILER_PACKAGES = ("@openzeppelin/contracts", "solc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract. `abi` is JSON ABI as web3 takes it; shared, so do not change it."""

    name: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes  # creation code, without constructor arguments


@cache
def load(name: str) -> Artifact:
    """The artifact of a contract in CONTRACT_NAMES. Raises ValueError for any other name."""
    if name not in CONTRACT_NAMES:
        raise ValueError(f"no contract {name}; there are {', '.join(CONTRACT_NAMES)}")
    document = json.loads(files("contracts").joinpath("artifacts", f"{name}.json").read_text(encoding="utf-8"))
    return Artifact(
        name=document["contractName"],
        abi=tuple(document["abi"]),
        bytecode=bytes.fromhex(document["bytecode"].removeprefix("0x")),
    )


def compiler_inputs(folder: Path) -> dict[str, Any]:
    """What the bytecode depends on beside the sources: settings and package versions, from `folder` (contracts/)."""
    profile = tomllib.loads((folder / "foundry.toml").read_text(encoding="utf-8"))["profile"]["default"]
    packages = json.loads((folder / "package.json").read_text(encoding="utf-8"))["devDependencies"]
    return {
        "packages": {name: packages[name] for name in _COMPILER_PACKAGES},
        "settings": {name: profile[name] for name in _COMPILER_SETTINGS},
    }


def source_hash(folder: Path) -> str:
    """0x text of a SHA-256 over compiler inputs and every .sol file under src/, in order of their paths.

    Line ends are normalised, so that a checkout with other line ends is not taken for a change.
    """
    digest = sha256(json.dumps(compiler_inputs(folder), sort_keys=True).encode())
    source_root = folder / "src"
    paths = sorted((path.relative_to(source_root).as_posix(), path) for path in source_root.rglob("*.sol"))
    for name, path in paths:
        content = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(b"\0" + name.encode() + b"\0" + len(content).to_bytes(8, "big") + content)
    return "0x" + digest.hexdigest()


def stale_artifacts(folder: Path) -> tuple[str, ...]:
    """One sentence per committed artifact that does not belong to the sources in `folder`; empty when all do."""
    expected = source_hash(folder)
    found = {path.stem: path for path in (folder / "artifacts").glob("*.json")}
    problems = []
    for name in CONTRACT_NAMES:
        if name not in found:
            problems.append(f"{name}: the artifact is missing")
        elif json.loads(found[name].read_text(encoding="utf-8")).get("sourceHash") != expected:
            problems.append(f"{name}: sources or compiler settings have changed since it was built")
    problems += [f"{name}: there is no such contract" for name in sorted(found.keys() - set(CONTRACT_NAMES))]
    return tuple(problems)
