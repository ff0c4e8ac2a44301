"""Independent vectors: states of @statechannels/nitro-protocol and outcomes of @statechannels/exit-format."""

import json
from pathlib import Path

import pytest

from channel.errors import PeerFault
from channel.outcome import Allocation, AssetExit, decode_outcome, encode_outcome
from channel.signing import Signer, recover
from channel.state import FixedPart, State, VariablePart
from channel.units import Hash, format_address, parse_address, parse_hex

HERE = Path(__file__).parent
STATES = json.loads((HERE / "nitro_states.json").read_text())["states"]
OUTCOMES = json.loads((HERE / "exit_outcomes.json").read_text())["cases"]


def state_of(case: dict) -> State:
    fixed = case["fixedPart"]
    return State(
        fixed=FixedPart(
            chain_id=int(fixed["chainId"]),
            participants=tuple(parse_address(p) for p in fixed["participants"]),
            channel_nonce=fixed["channelNonce"],
            app_definition=parse_address(fixed["appDefinition"]),
            challenge_duration_s=fixed["challengeDuration"],
        ),
        turn=case["turnNum"],
        is_final=case["isFinal"],
        variable=VariablePart(
            outcome=parse_hex(case["expected"]["encodedOutcome"]), app_data=parse_hex(case["appData"])
        ),
    )


@pytest.mark.parametrize("case", STATES, ids=lambda c: c["name"])
def test_state_hashes_and_signatures(case: dict) -> None:
    state, expected = state_of(case), case["expected"]
    assert state.fixed.channel_id == parse_hex(expected["channelId"])
    assert state.outcome_hash == parse_hex(expected["outcomeHash"])
    assert state.app_part_hash == parse_hex(expected["appPartHash"])
    assert state.state_hash == parse_hex(expected["stateHash"])
    assert state.digest == parse_hex(expected["signedDigest"])
    for secret, signature in zip(case["privateKeys"], expected["signatures"], strict=True):
        raw = parse_hex(signature["bytes"])
        assert Signer(parse_hex(secret)).sign(state.digest) == raw
        assert format_address(recover(state.digest, raw)) == signature["signer"]


@pytest.mark.parametrize("case", OUTCOMES, ids=lambda c: c["name"])
def test_exit_outcomes(case: dict) -> None:
    exits = tuple(
        AssetExit(
            asset=parse_address(row["asset"]),
            chain_id=int(row["chainID"]),
            asset_holder=parse_address(row["assetHolder"]),
            allocations=tuple(
                Allocation(
                    destination=Hash(parse_hex(a["destination"])),
                    amount=int(a["amount"]),
                    allocation_type=a["allocationType"],
                    metadata=parse_hex(a["metadata"]),
                )
                for a in row["allocations"]
            ),
        )
        for row in case["exits"]
    )
    encoded = parse_hex(case["expected"]["encoded"])
    assert encode_outcome(exits) == encoded
    assert decode_outcome(encoded) == exits
    with pytest.raises(PeerFault, match="encoding.invalid"):
        decode_outcome(encoded + bytes(32))
