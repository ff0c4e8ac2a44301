"""Parts of the demo that need no network: users and their keys, journals counted, co-signatures checked."""

import json

from channel.hashing import keccak
from channel.signing import Signer, eth_sign_digest
from channel.units import Hash, format_hex
from devnet import scenario
from devnet.plan import USERS_PER_BROKER, make_plan
from devnet.scenario import _is_cosigned, _Journal, _users, user_key, user_secret

A, B = Signer(keccak(b"a")), Signer(keccak(b"b"))


def state(turn: int, *signers: Signer) -> dict[str, object]:
    state_hash = Hash(keccak(turn.to_bytes(8, "big")))
    sigs = [format_hex(signer.sign(eth_sign_digest(state_hash))) for signer in signers]
    return {"turn": turn, "final": False, "t": 1, "runs": [], "hash": format_hex(state_hash), "sigs": sigs}


def test_ten_users_of_each_broker_with_keys_of_their_own() -> None:
    plan = make_plan(None, 200, every=5, seed=9, cover_ratio_bps=11_000)
    users = [*_users("a", plan), *_users("b", plan)]
    assert len(users) == 2 * USERS_PER_BROKER
    assert len({user.signer.address for user in users}) == len({user.name for user in users}) == len(users)
    assert user_key(9, "a", 0).address == users[0].signer.address
    assert user_secret(9, "a", 0) != user_secret(8, "a", 0)


def test_a_state_counts_as_cosigned_only_with_both_signatures_in_order() -> None:
    participants = (A.address, B.address)
    assert _is_cosigned(state(1, A, B), participants)
    assert not _is_cosigned(state(1, B, A), participants)
    assert not _is_cosigned(state(1, A, A), participants)
    assert not _is_cosigned(state(1, A), participants)
    assert not _is_cosigned(state(1, A, B) | {"hash": format_hex(keccak(b"other"))}, participants)
    assert not _is_cosigned(state(1, A, B) | {"sigs": ["0x00", "0x00"]}, participants)


def test_a_journal_is_counted_line_by_line() -> None:
    journal = _Journal()
    lines = [{"channel": {}}, {"lock": {}}, {"entry": {"by": 0}}, {"entry": {"by": 1}}, {"entry": {"by": 1}},
             {"state": state(7, A, B)}, {"order": {}, "broker": 0}]  # fmt: skip
    texts = [json.dumps(line).encode() for line in lines]
    for text in texts:
        journal.add(text)
    assert journal.entries == [1, 2]
    assert [s["turn"] for s in journal.states] == [7]
    assert journal.size_bytes == sum(len(text) + 1 for text in texts)
    assert journal.entry_bytes == sum(len(text) + 1 for text in texts[2:5])


def test_every_kind_of_transaction_has_a_name() -> None:
    assert len(set(scenario._GAS_OF.values())) == len(scenario._GAS_OF)
