"""What XLN attests: the outcome that both journals lead to, with a user's order behind every fill, and nothing else."""

import json
from collections.abc import Callable

import pytest

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.locks import Lock, SignedLock
from channel.signing import Signer, recover
from channel.state import FixedPart
from channel.typed import collateral_domain
from channel.units import Address
from tests.support.journals import ETH, LOT_WEI, Brokers, eth_usd_terms
from xln.adjudication import adjudicate, look, shows_opening

CHAIN_ID = 31337
NOW_MS = 1_700_000_000_000
ADJUDICATOR, COLLATERAL = Address(b"\xad" * 20), Address(b"\xc0" * 20)
CUSTODIES = (Address(b"\xca" * 20), Address(b"\xcb" * 20))
USD = Address(b"\x0d" * 20)
FIRST, SECOND = sorted((Signer(keccak(b"a")), Signer(keccak(b"b"))), key=lambda s: s.address)
XLN = Signer(keccak(b"xln"))
USERS = (Signer(keccak(b"user of a")), Signer(keccak(b"user of b")))


def make(*, nonce: int = NOW_MS) -> Brokers:
    fixed = FixedPart(
        chain_id=CHAIN_ID,
        participants=(FIRST.address, SECOND.address),
        channel_nonce=nonce,
        app_definition=ADJUDICATOR,
        challenge_duration_s=60,
    )
    terms = eth_usd_terms(fixed, CUSTODIES, COLLATERAL, USD)
    return Brokers(fixed, terms, (FIRST, SECOND), USERS, now_ms=NOW_MS)


def lock(brokers: Brokers, owner: int, signer: Signer = XLN) -> SignedLock:
    made = Lock(
        channel_id=brokers.fixed.channel_id,
        terms_hash=brokers.terms.terms_hash,
        owner=brokers.fixed.participants[owner],
        token=USD,
        amount=10**12,
        expiry_s=2_000_000_000,
        open_by_s=1_800_000_000,
    )
    return SignedLock(lock=made, signature=signer.sign(made.digest(collateral_domain(CHAIN_ID, COLLATERAL))))


def opened() -> Brokers:
    brokers = make()
    brokers.open((lock(brokers, 0), lock(brokers, 1)))
    return brokers


def traded() -> Brokers:
    """A's user buys 10 lots at 200,000 and sells 4 lots at 210,000 on B's book; then the channel is closed."""
    brokers = opened()
    brokers.trade(0, 0, 200_000, 10)
    brokers.trade(0, 1, 210_000, 4)
    brokers.close()
    return brokers


def judge(brokers: Brokers):  # type: ignore[no-untyped-def]
    return adjudicate(brokers.fixed, brokers.terms, XLN.address, brokers.journals)


def test_the_outcome_of_two_journals_and_what_each_custody_pays() -> None:
    brokers = traded()
    verdict = judge(brokers)
    assert brokers.last is not None
    final = brokers.last[0].state
    assert (verdict.turn, verdict.state_hash, verdict.outcome) == (final.turn, final.state_hash, final.variable.outcome)
    assert verdict.fills == 2
    by_custody = {rows.custody: dict(zip(rows.tokens, rows.amounts, strict=True)) for rows in verdict.rows}
    assert by_custody == {CUSTODIES[1]: {ETH: 6 * LOT_WEI}, CUSTODIES[0]: {USD: 10 * 200_000 - 4 * 210_000}}
    for rows in verdict.rows:
        digest = rows.digest(CHAIN_ID, brokers.fixed.channel_id, verdict.outcome_hash)
        assert recover(digest, XLN.sign(digest)) == XLN.address


def test_a_channel_without_trades_has_no_rows() -> None:
    brokers = opened()
    brokers.close()
    assert judge(brokers).rows == ()


def test_the_opening_is_shown_by_the_second_state_only() -> None:
    brokers = opened()
    texts = brokers.journals[0]
    assert shows_opening(brokers.fixed, brokers.terms, XLN.address, texts)
    for count in range(len(texts)):
        assert not shows_opening(brokers.fixed, brokers.terms, XLN.address, texts[:count])


def test_an_opening_with_a_lock_that_xln_has_not_signed_is_refused() -> None:
    brokers = make()
    brokers.open((lock(brokers, 0), lock(brokers, 1, Signer(keccak(b"stranger")))))
    with pytest.raises(PeerFault, match="signature.signer") as caught:
        shows_opening(brokers.fixed, brokers.terms, XLN.address, brokers.journals[0])
    assert caught.value.code is Code.ATTEST_JOURNAL
    assert caught.value.data["at"] == 3


def test_a_journal_that_does_not_end_is_incomplete() -> None:
    brokers = opened()
    brokers.trade(0, 0, 200_000, 10)
    with pytest.raises(PeerFault) as caught:
        judge(brokers)
    assert caught.value.code is Code.ATTEST_INCOMPLETE


def unknown_order(brokers: Brokers) -> None:
    """The venue names an order that no user signed."""
    brokers.trade(0, 0, 200_000, 10)
    brokers.journals[1][:] = [text for text in brokers.journals[1] if not text.startswith('{"order"')]


def worse_than_signed(brokers: Brokers) -> None:
    """The venue's user wanted 200,001."""
    ref = brokers.create(0, brokers.order(0, 0, 200_000, 10))
    brokers.fill(1, ref, 200_000, 10, brokers.order(1, 1, 200_001, 10))
    brokers.turn()


def wrong_side(brokers: Brokers) -> None:
    ref = brokers.create(0, brokers.order(0, 0, 200_000, 10))
    brokers.fill(1, ref, 200_000, 10, brokers.order(1, 0, 200_000, 10))
    brokers.turn()


def filled_twice(brokers: Brokers) -> None:
    """One order of the venue's user behind two fills that are more than it."""
    counter = brokers.order(1, 1, 200_000, 10)
    for _ in range(2):
        ref = brokers.create(0, brokers.order(0, 0, 200_000, 10))
        brokers.fill(1, ref, 200_000, 10, counter)
    brokers.turn()


def forged(brokers: Brokers) -> None:
    """The venue signs its user's order itself."""
    ref = brokers.create(0, brokers.order(0, 0, 200_000, 10))
    good = brokers.order(1, 1, 200_000, 10)
    brokers.fill(1, ref, 200_000, 10, good)
    brokers.turn()
    changed = json.loads(brokers.journals[1][-2])
    changed["order"]["sig"] = "0x" + SECOND.sign(good.order_id).hex()
    brokers.journals[1][-2] = json.dumps(changed)


@pytest.mark.parametrize("spoil", [unknown_order, worse_than_signed, wrong_side, filled_twice, forged])
def test_a_fill_without_a_users_order_behind_it_is_not_attested(spoil: Callable[[Brokers], None]) -> None:
    brokers = opened()
    spoil(brokers)
    brokers.close()
    with pytest.raises(PeerFault) as caught:
        judge(brokers)
    assert caught.value.code is Code.ATTEST_ORDER


def test_a_record_left_out_or_changed_is_found() -> None:
    length = len(traded().journals[0])
    for index in range(1, length):
        brokers = traded()
        if brokers.journals[0][index].startswith('{"order"'):
            continue
        del brokers.journals[0][index]
        with pytest.raises(PeerFault) as caught:
            judge(brokers)
        expected = Code.ATTEST_INCOMPLETE if index == length - 1 else Code.ATTEST_JOURNAL
        assert caught.value.code is expected, index
        assert caught.value.data["broker"].lower() == "0x" + FIRST.address.hex()


def test_two_final_states_are_not_attested() -> None:
    one, other = traded(), opened()
    other.trade(0, 0, 200_000, 10)
    other.close()
    with pytest.raises(PeerFault, match="different final states") as caught:
        adjudicate(one.fixed, one.terms, XLN.address, (one.journals[0], other.journals[1]))
    assert caught.value.code is Code.ATTEST_JOURNAL


def test_a_journal_of_another_channel_is_refused() -> None:
    brokers, other = traded(), make(nonce=NOW_MS + 1)
    with pytest.raises(PeerFault, match="another channel") as caught:
        adjudicate(brokers.fixed, brokers.terms, XLN.address, (other.journals[0], brokers.journals[1]))
    assert caught.value.code is Code.ATTEST_JOURNAL


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state":1}', '{"state":{},"state":{}}', "\ud800", '{"entry":1.5}'])
def test_what_cannot_be_a_record_is_refused_at_upload(text: str) -> None:
    with pytest.raises(PeerFault) as caught:
        look(text, 7)
    assert caught.value.code is Code.ATTEST_JOURNAL
    assert caught.value.data["at"] == 7


def test_a_final_state_is_seen_at_upload() -> None:
    finals = [look(text, 0).is_final for text in traded().journals[0]]
    assert finals == [False] * (len(finals) - 1) + [True]
