"""FixedPart and State: hashes against eth_abi, ranges, and the limits of channels that a node opens."""

from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.state import FixedPart, State, VariablePart
from channel.units import UINT48_MAX, UINT256_MAX, ZERO_ADDRESS, Address
from tests.support.channels import ADJUDICATOR, CHAIN_ID, FIXED, SIGNERS, STRANGER, make_fixed

ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
UINT48 = st.integers(0, UINT48_MAX)


@given(
    st.integers(0, UINT256_MAX),
    st.one_of(st.lists(ADDRESSES, min_size=1, max_size=5), st.lists(ADDRESSES, min_size=255, max_size=255)),
    UINT48,
    ADDRESSES,
    UINT48,
    UINT48,
    st.booleans(),
    st.binary(max_size=100),
    st.binary(max_size=100),
)
def test_hashes_are_those_of_the_abi(
    chain_id: int,
    participants: list[Address],
    nonce: int,
    app: Address,
    duration: int,
    turn: int,
    is_final: bool,
    app_data: bytes,
    outcome: bytes,
) -> None:
    fixed = FixedPart(
        chain_id=chain_id,
        participants=tuple(participants),
        channel_nonce=nonce,
        app_definition=app,
        challenge_duration_s=duration,
    )
    state = State(fixed=fixed, turn=turn, is_final=is_final, variable=VariablePart(outcome=outcome, app_data=app_data))
    assert fixed.channel_id == keccak(encode(["uint256", "address[]", "uint256"], [chain_id, participants, nonce]))
    assert state.app_part_hash == keccak(encode(["uint256", "address", "bytes"], [duration, app, app_data]))
    assert state.outcome_hash == keccak(outcome)
    header = [turn, is_final, fixed.channel_id, state.app_part_hash, state.outcome_hash]
    assert state.state_hash == keccak(encode(["uint256", "bool", "bytes32", "bytes32", "bytes32"], header))
    assert state.digest == keccak(b"\x19Ethereum Signed Message:\n32" + state.state_hash)


@pytest.mark.parametrize(
    "change",
    [
        {"participants": ()},
        {"participants": (ZERO_ADDRESS,) * 256},
        {"chain_id": -1},
        {"chain_id": UINT256_MAX + 1},
        {"channel_nonce": -1},
        {"channel_nonce": UINT48_MAX + 1},
        {"challenge_duration_s": UINT48_MAX + 1},
    ],
)
def test_what_does_not_fit_the_types(change: dict[str, Any]) -> None:
    with pytest.raises(PeerFault) as caught:
        make_fixed(**change)
    assert caught.value.code is Code.ENCODING


@pytest.mark.parametrize("turn", [-1, UINT48_MAX + 1])
def test_turns_fit_uint48(turn: int) -> None:
    with pytest.raises(PeerFault) as caught:
        State(fixed=FIXED, turn=turn, is_final=False, variable=VariablePart(outcome=b"", app_data=b""))
    assert caught.value.code is Code.ENCODING


@pytest.mark.parametrize(
    "change",
    [
        {"participants": FIXED.participants[::-1]},
        {"participants": (FIXED.participants[0],) * 2},
        {"participants": (ZERO_ADDRESS, FIXED.participants[0])},
        {"participants": (*FIXED.participants, STRANGER.address)},
        {"participants": FIXED.participants[:1]},
        {"app_definition": ZERO_ADDRESS},
        {"chain_id": 1},
        {"challenge_duration_s": 59},
        {"challenge_duration_s": 30 * 24 * 3600 + 1},
    ],
)
def test_the_limits_of_our_channels(change: dict[str, Any]) -> None:
    FIXED.require_ours(ADJUDICATOR, CHAIN_ID, 60)
    with pytest.raises(PeerFault) as caught:
        make_fixed(**change).require_ours(ADJUDICATOR, CHAIN_ID, 60)
    assert caught.value.code is Code.CHANNEL_TERMS


def test_index_of_a_participant() -> None:
    assert [FIXED.index_of(s.address) for s in SIGNERS] == [0, 1]
    with pytest.raises(PeerFault) as caught:
        FIXED.index_of(STRANGER.address)
    assert caught.value.code is Code.CHANNEL_UNKNOWN
