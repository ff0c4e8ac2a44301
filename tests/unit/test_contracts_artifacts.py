"""contracts.artifacts: the committed ABI and bytecode belong to the sources, and to the types that Python signs."""

import json
import re
import shutil
from pathlib import Path

import pytest

from channel import typed
from channel.hashing import keccak
from contracts.artifacts import CONTRACT_NAMES, load, source_hash, stale_artifacts

FOLDER = Path(__file__).resolve().parents[2] / "contracts"
COPIED = ("src", "artifacts", "foundry.toml", "package.json")


def copy_of_contracts(tmp_path: Path) -> Path:
    for name in COPIED:
        if (FOLDER / name).is_dir():
            shutil.copytree(FOLDER / name, tmp_path / name)
        else:
            shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path


def signature_of(entry: dict) -> str:
    def kind(item: dict) -> str:
        if not item["type"].startswith("tuple"):
            return item["type"]
        return f"({','.join(kind(part) for part in item['components'])}){item['type'].removeprefix('tuple')}"

    return f"{entry['name']}({','.join(kind(item) for item in entry['inputs'])})"


def signatures(name: str, entry_type: str) -> set[str]:
    return {signature_of(entry) for entry in load(name).abi if entry["type"] == entry_type}


@pytest.mark.parametrize("name", CONTRACT_NAMES)
def test_every_contract_loads(name: str) -> None:
    artifact = load(name)
    assert artifact.name == name
    assert artifact.abi
    assert len(artifact.bytecode) > 500
    assert load(name) is artifact


def test_unknown_contracts_are_named() -> None:
    with pytest.raises(ValueError, match="no contract Nothing"):
        load("Nothing")


def test_committed_artifacts_belong_to_the_sources() -> None:
    assert stale_artifacts(FOLDER) == ()


def test_a_changed_source_makes_every_artifact_stale(tmp_path: Path) -> None:
    folder = copy_of_contracts(tmp_path)
    assert stale_artifacts(folder) == ()
    source = folder / "src" / "Adjudicator.sol"
    source.write_bytes(source.read_bytes() + b"// changed\n")
    assert len(stale_artifacts(folder)) == len(CONTRACT_NAMES)


def test_a_changed_setting_counts_and_fuzz_runs_do_not(tmp_path: Path) -> None:
    folder = copy_of_contracts(tmp_path)
    before = source_hash(folder)
    config = folder / "foundry.toml"
    text = config.read_text()
    config.write_text(text.replace("runs = 256", "runs = 1024"))
    assert source_hash(folder) == before
    config.write_text(text.replace("optimizer_runs = 200", "optimizer_runs = 201"))
    assert source_hash(folder) != before


def test_a_moved_source_counts_and_line_ends_do_not(tmp_path: Path) -> None:
    folder = copy_of_contracts(tmp_path)
    before = source_hash(folder)
    source = folder / "src" / "TestToken.sol"
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    assert source_hash(folder) == before
    source.rename(source.with_name("Token.sol"))
    assert source_hash(folder) != before


def test_missing_and_strange_artifacts_are_named(tmp_path: Path) -> None:
    folder = copy_of_contracts(tmp_path)
    (folder / "artifacts" / "TestToken.json").rename(folder / "artifacts" / "Strange.json")
    problems = stale_artifacts(folder)
    assert [problem.partition(":")[0] for problem in problems] == ["TestToken", "Strange"]


def test_artifacts_name_no_place_on_this_machine() -> None:
    for path in (FOLDER / "artifacts").glob("*.json"):
        assert str(FOLDER) not in path.read_text()
        assert set(json.loads(path.read_text())) == {
            "abi",
            "bytecode",
            "compiler",
            "contractName",
            "deployedBytecode",
            "sourceHash",
        }


@pytest.mark.parametrize(
    ("struct", "source"),
    [
        (typed.LOCK, "XlnCollateral"),
        (typed.RELEASE, "XlnCollateral"),
        (typed.WITHDRAWAL, "BrokerCustody"),
        (typed.WITHDRAWAL_APPROVAL, "BrokerCustody"),
        (typed.ATTESTATION, "BrokerCustody"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_python_and_solidity_sign_the_same_types(struct: typed.TypedStruct, source: str) -> None:
    text = (FOLDER / "src" / f"{source}.sol").read_text()
    assert f'"{struct.type_string}"' in text
    # The type hash is a constant in the code: what is deployed, not only what is written.
    assert struct.type_hash in load(source).bytecode


def test_eip712_domains_have_the_names_that_python_signs_with() -> None:
    for source, name in (("BrokerCustody", "XLN Custody"), ("XlnCollateral", "XLN Collateral")):
        text = (FOLDER / "src" / f"{source}.sol").read_text()
        assert re.findall(r'EIP712\("([^"]*)", "([^"]*)"\)', text) == [(name, "1")]


def test_the_interface_that_nodes_call() -> None:
    row = "(uint256,address[],uint48,address,uint48)"
    assert f"conclude({row},uint48,bytes,bytes32,(uint8,bytes32,bytes32)[2])" in signatures("Adjudicator", "function")
    assert {
        "depositNative()",
        "deposit(address,uint256)",
        "withdraw((address,address,uint256,address,bytes32,uint64),bytes,bytes)",
        "payout(bytes32,bytes,address[],uint256[],bytes[])",
        "payClaim(bytes32,address)",
        "claims(bytes32,address)",
        "channelReserve(bytes32,address)",
        "paidOut(bytes32)",
    } <= signatures("BrokerCustody", "function")
    assert {"create(address[],uint256)", "custodyOf(address)", "isCustody(address)"} <= signatures(
        "CustodyFactory", "function"
    )
    assert {
        "register(address,string)",
        "registerLock((bytes32,bytes32,address,address,uint256,uint64,uint64),bytes)",
        "release(bytes32,address,bytes)",
        "releaseExpired(bytes32,address)",
        "lockOf(bytes32,address)",
    } <= signatures("XlnCollateral", "function")


def test_the_events_that_watchers_follow() -> None:
    assert {
        "Deposited(address,address,uint256)",
        "Withdrawn(bytes32,address,address,uint256,address)",
        "PaidOut(bytes32,address,address,uint256)",
        "PayoutShort(bytes32,address,address,uint256)",
        "PayoutExecuted(bytes32,bytes32)",
        "ChannelFundsReceived(bytes32,address,uint256,address)",
    } <= signatures("BrokerCustody", "event")
    assert "Concluded(bytes32,uint48,bytes32)" in signatures("Adjudicator", "event")
    assert "CustodyCreated(address,address)" in signatures("CustodyFactory", "event")
    assert {
        "BrokerRegistered(address,address,string)",
        "CollateralDeposited(address,address,uint256)",
        "LockRegistered(bytes32,bytes32,address,bytes32,address,uint256,uint64,uint64)",
        "LockReleased(bytes32,bytes32,address,address,uint256)",
    } <= signatures("XlnCollateral", "event")


def test_errors_are_prefixed_and_their_selectors_distinct() -> None:
    prefixes = {
        "Adjudicator": "Adjudicator",
        "BrokerCustody": "Custody",
        "CustodyFactory": "Factory",
        "XlnCollateral": "Collateral",
    }
    inherited = re.compile(
        r"ECDSA|Errors|ReentrancyGuard|SafeERC20|InvalidShortString|StringTooLong|FailedCall|ExitFormat|Insufficient"
    )
    selectors: dict[bytes, str] = {}
    for name, prefix in prefixes.items():
        for error in signatures(name, "error"):
            assert error.startswith(prefix) or inherited.match(error), error
            assert selectors.setdefault(keccak(error.encode())[:4], error) == error
