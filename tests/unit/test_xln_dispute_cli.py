"""`xln-dispute inspect`: the vectors' values, our states in words, and one line for what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from channel.appdata import AppData, BalanceUpdate, CollateralLock, OpenOrdersSummary, Price
from channel.jsonform import MAX_STATE_FILE_BYTES, state_to_json
from channel.signing import CURVE_ORDER
from channel.state import CosignedState, State, VariablePart
from channel.units import UINT64_MAX, ZERO_HASH, Address, Hash, MarketId, format_address, format_hex
from tests.support.channels import (
    BTC,
    BUY,
    CHAIN_ID,
    COLLATERAL,
    CUSTODIES,
    ETH,
    FIXED,
    SELL,
    SIGNERS,
    TERMS,
    USD,
    deliver,
    drain,
    market_of,
    notify_call,
    open_pair,
)
from xln.dispute_cli import main

A, B = (format_address(s.address) for s in SIGNERS)
STATES = json.loads((Path(__file__).parent.parent / "vectors" / "nitro_states.json").read_text())["states"]


def inspect(raw: object, *options: str) -> Result:
    text = raw if isinstance(raw, str | bytes) else json.dumps(raw)
    return CliRunner().invoke(main, ["inspect", "-", *options], input=text)


def refused(raw: object) -> str:
    result = inspect(raw)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def vector_file(case: dict[str, Any]) -> dict[str, Any]:
    names = ("fixedPart", "turnNum", "isFinal", "appData")
    expected = case["expected"]
    return {
        **{name: case[name] for name in names},
        "outcome": expected["encodedOutcome"],
        "signatures": expected["signatures"],
    }


@pytest.mark.parametrize("case", STATES, ids=lambda case: case["name"])
def test_the_vectors(case: dict[str, Any], tmp_path: Path) -> None:
    expected = case["expected"]
    path = tmp_path / "state.json"
    path.write_text(json.dumps(vector_file(case)))
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    for name in ("channelId", "appPartHash", "outcomeHash", "stateHash"):
        assert printed[name] == expected[name]
    assert printed["digest"] == expected["signedDigest"]
    assert printed["signers"] == [s["signer"] for s in expected["signatures"]]
    assert printed["fullySigned"] is True
    assert printed["appData"] == case["appData"]
    words = CliRunner().invoke(main, ["inspect", str(path)])
    assert words.exit_code == 0
    for name in ("channelId", "appPartHash", "outcomeHash", "stateHash", "signedDigest"):
        assert expected[name] in words.stdout
    assert "fully signed" in words.stdout
    assert case["appData"] in words.stdout
    for signature in expected["signatures"]:
        assert f"{signature['signer']}  valid" in words.stdout


def traded() -> CosignedState:
    a, b = open_pair()
    first = a.send_create(BUY, 200_000, 1_000)
    deliver(a, b)
    b.send_calls(notify_call(first, "filled", 900, [[190_000, 100, "0x" + "11" * 32]]))
    b.send_create(SELL, 210_050, 5)
    drain(a, b)
    last = a.channel.cosigned
    assert last is not None
    return signed(last.state)


def signed(state: State) -> CosignedState:
    return CosignedState(state=state, signatures=(SIGNERS[0].sign(state.digest), SIGNERS[1].sign(state.digest)))


TRADED = traded()


def with_data(data: AppData) -> CosignedState:
    variable = VariablePart(outcome=TRADED.state.variable.outcome, app_data=data.encode())
    return signed(State(fixed=FIXED, turn=7, is_final=True, variable=variable))


def test_our_state_in_words() -> None:
    result = inspect(state_to_json(TRADED, TERMS))
    assert result.exit_code == 0, result.output
    for line in (
        f"  {B} owes {A} 0.01 ETH",
        f"  {A} owes {B} 19 USD",
        f"  {A} buys 0.09 ETH on eth/usd of {B} at 2000, 180 USD in all",
        f"  {B} sells 0.0005 ETH on eth/usd of {A} at 2100.5, 1.05025 USD in all",
        "outcome: what the balance updates imply",
        f"  custody {format_address(CUSTODIES[1])} pays 0.01 ETH to {format_address(CUSTODIES[0])}",
        "signatures (2): fully signed",
    ):
        assert line in result.stdout.splitlines(), line
    assert f"1000000 USD locked behind {A}" in result.stdout


def test_our_state_as_json() -> None:
    printed = json.loads(inspect(state_to_json(TRADED, TERMS), "--json").stdout)
    assert printed["appData"]["bu"][B][A] == [[hex(CHAIN_ID), format_address(ETH), "0", "0.01"]]
    assert printed["outcome"][0]["chainID"] == str(CHAIN_ID)
    assert printed["outcomeFollowsFromBalances"] is True
    again = {**state_to_json(TRADED, TERMS), "outcome": printed["outcome"]}
    assert json.loads(inspect(again, "--json").stdout) == printed


def test_without_terms_amounts_are_base_units() -> None:
    result = inspect(state_to_json(TRADED))
    assert f"{B} owes {A} 10000000000000000 base units of the native token" in result.stdout
    assert f"{A} owes {B} 19000000 base units of {format_address(USD)}" in result.stdout
    assert "at 200000 to 200000 ticks, 180000000 base units of the quote token" in result.stdout
    printed = json.loads(inspect(state_to_json(TRADED), "--json").stdout)
    assert printed["appData"] == format_hex(TRADED.state.variable.app_data)
    assert printed["outcomeFollowsFromBalances"] is None


def test_what_the_terms_do_not_list_is_shown_all_the_same() -> None:
    other, token = SIGNERS[1].address, Address(COLLATERAL)
    data = AppData.of(
        terms_hash=TERMS.terms_hash,
        time_ms=UINT64_MAX,
        journal_head=ZERO_HASH,
        balance_updates=[
            BalanceUpdate(holder=SIGNERS[0].address, owner=other, chain_id=1, token=token, available=3, locked=2)
        ],
        open_orders=[
            OpenOrdersSummary(
                holder=other,
                owner=other,
                market_id=MarketId(b"\1" * 32),
                side=1,
                base=1,
                low_ticks=1,
                high_ticks=2,
                quote=1,
            ),
            OpenOrdersSummary(
                holder=other,
                owner=other,
                market_id=market_of(1).market_id,
                side=0,
                base=1,
                low_ticks=1,
                high_ticks=2,
                quote=1,
            ),
        ],
        collateral=[
            CollateralLock(owner=other, lock_id=Hash(b"\2" * 32), chain_id=CHAIN_ID, token=BTC, available=5, locked=7)
        ],
        prices=[Price(asset=ETH, quote=USD, price=5, time_ms=9)],
    )
    raw = state_to_json(with_data(data), TERMS)
    words = inspect(raw).stdout
    assert f"5 base units of {format_address(token)} on chain 1 (of which 3 base units" in words
    assert "on market 0x0101" in words
    assert "at 0.01 to 0.02" in words
    assert "0.00000007 WBTC locked behind" in words
    assert "0.00000005 WBTC available" in words
    assert "are worth 5 base units" in words
    assert "NOT what the balance updates imply" in words
    assert "turn            7, final" in words
    printed = json.loads(inspect(raw, "--json").stdout)
    assert printed["appData"] == raw["appData"]  # no JSON form
    assert printed["outcomeFollowsFromBalances"] is False


def test_an_empty_state_and_missing_signatures() -> None:
    a, _ = open_pair()
    last = a.channel.cosigned
    assert last is not None
    raw = state_to_json(signed(last.state), TERMS)
    raw["signatures"] = raw["signatures"][1:]
    result = inspect(raw)
    for line in ("neither owes the other anything", "pays nothing", "NOT fully signed, 1 of 2 missing", "  none"):
        assert line in result.stdout
    assert f"{A}  has not signed, participant 0" in result.stdout
    printed = json.loads(inspect(raw, "--json").stdout)
    assert printed["signers"] == [B]
    assert printed["unsignedBy"] == [A]
    assert printed["fullySigned"] is False


def test_a_destination_that_is_no_address() -> None:
    row = {
        "asset": "0x0",
        "chainID": "5",
        "assetHolder": A,
        "allocations": [{"destination": "0x" + "ff" * 32, "amount": "1", "allocationType": 0, "metadata": "0x"}],
    }
    raw = {**state_to_json(TRADED), "outcome": [row], "signatures": []}
    assert "on chain 5 to 0x" + "ff" * 32 in inspect(raw).stdout


GOOD = vector_file(STATES[0])


def test_what_is_wrong_is_said_in_one_line() -> None:
    assert "json.parse" in refused("")
    assert "json.parse" in refused("not json")
    assert "json.parse" in refused(b"\xff\xfe")
    assert "json.parse" in refused("[" * 100_000)
    assert "json.duplicate_key" in refused('{"turnNum": 1, "turnNum": 1}')
    assert "json.number" in refused('{"turnNum": 1.0}')
    assert "frame.too_large" in refused(" " * (MAX_STATE_FILE_BYTES + 1))
    assert "rpc.params" in refused([])
    assert "fixedPart" in refused({})
    assert "rpc.params" in refused({**GOOD, "isFinal": "false"})
    assert "allocationItems" not in refused({**GOOD, "outcome": STATES[0]["outcome"]})
    assert "encodedOutcome" in refused({**GOOD, "outcome": STATES[0]["outcome"]})


def test_signatures_that_are_not_valid() -> None:
    first = GOOD["signatures"][0]
    s = CURVE_ORDER - int(first["s"], 16)
    high = {"r": first["r"], "s": f"0x{s:064x}", "v": 55 - first["v"]}
    assert "signature.high_s" in refused({**GOOD, "signatures": [high]})
    assert "signature.v" in refused({**GOOD, "signatures": [{**high, "s": first["s"], "v": 1}]})
    other = STATES[1]["expected"]["signatures"]
    assert "not a participant" in refused({**GOOD, "signatures": [other[0]["bytes"]]})
    assert "signature.signer" in refused({**GOOD, "signatures": [{**first, "signer": A.lower()[:-1] + "0"}]})
    assert "signature.signer" in refused({**GOOD, "turnNum": 1})
    assert "signature.invalid" in refused({**GOOD, "signatures": [{**first, "bytes": "0x" + "00" * 65}]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        result = CliRunner().invoke(main, ["inspect", str(path)])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: storage.failed: ")
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (MAX_STATE_FILE_BYTES + 2))
    assert "frame.too_large" in CliRunner().invoke(main, ["inspect", str(large)]).stderr


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(main, ["inspect", "--help"])
    assert result.exit_code == 0
    assert "xln-dispute inspect state.json" in result.stdout
    assert "inspect" in CliRunner().invoke(main, ["--help"]).stdout
    assert CliRunner().invoke(main, ["inspect"]).exit_code == 2


def test_the_same_state_has_the_same_hash_whoever_exports_it() -> None:
    with_terms = json.loads(inspect(state_to_json(TRADED, TERMS), "--json").stdout)
    without = json.loads(inspect(state_to_json(TRADED), "--json").stdout)
    changed = replace(TRADED.state, turn=TRADED.state.turn + 1)
    later = json.loads(inspect(state_to_json(signed(changed)), "--json").stdout)
    assert with_terms["stateHash"] == without["stateHash"] != later["stateHash"]
