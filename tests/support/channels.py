"""Two sides of one channel for tests: real keys and signatures, JSON on the wire, no network.

A `Side` does what a node does around the pure transition: it makes entries, signs, keeps what must be resent. The wire
between two sides is a queue per direction, which the tests drain, hold back or lose.
"""

from collections import deque
from dataclasses import replace
from typing import Any

from channel.calls import MAX_BATCH, parse_calls
from channel.entry import Entry, entry_digest, entry_from_json, entry_to_json
from channel.journal import OrderRecord, Record, StateRecord, runs_from_json, runs_to_json
from channel.locks import Lock, SignedLock
from channel.orders import Order, OrderType, SignedOrder, TimeInForce, order_to_json, sign_order
from channel.signing import Signer, require_signer
from channel.state import FixedPart, State, VariablePart
from channel.strictjson import dumps
from channel.terms import Market, Terms, Token
from channel.transition import (
    Channel,
    Countersign,
    Proposal,
    add_entry,
    check,
    lock_confirmed,
    lock_signed,
    open_channel,
    propose,
    receive_countersignature,
    receive_proposal,
    receive_refusal,
    request_close,
)
from channel.typed import collateral_domain, custody_domain, node_domain
from channel.units import ZERO_ADDRESS, ZERO_HASH, Address, Hash, format_hex

CHAIN_ID = 31337
BUY, SELL = 0, 1
SIGNERS = sorted((Signer(bytes([1]) * 32), Signer(bytes([2]) * 32)), key=lambda s: s.address)
XLN = Signer(bytes([3]) * 32)
STRANGER = Signer(bytes([4]) * 32)
USERS = (Signer(bytes([11]) * 32), Signer(bytes([12]) * 32))  # one of each broker
ADJUDICATOR = Address(bytes([0xAD]) * 20)
COLLATERAL = Address(bytes([0xC0]) * 20)
CUSTODIES = (Address(bytes([0xCA]) * 20), Address(bytes([0xCB]) * 20))
ETH, USD, BTC = ZERO_ADDRESS, Address(bytes([0x05]) * 20), Address(bytes([0xBC]) * 20)
START_MS = 1_700_000_000_000
UNTIL_MS = START_MS + 3_600_000


def market_of(holder: int, base: Address = ETH, *, tick: int = 1, lot: int = 10**14) -> Market:
    """By default: lots of 0.0001 of the base, ticks of 0.01 USD (one USD base unit per lot)."""
    return Market(
        holder=SIGNERS[holder].address, chain_id=CHAIN_ID, base=base, quote=USD, tick_quote=tick, lot_base=lot
    )


def make_terms(**changes: Any) -> Terms:
    values: dict[str, Any] = {
        "custodies": CUSTODIES,
        "collateral": COLLATERAL,
        "tokens": (
            Token(address=ETH, symbol="ETH", decimals=18, haircut_bps=2000),
            Token(address=USD, symbol="USD", decimals=6),
            Token(address=BTC, symbol="WBTC", decimals=8, haircut_bps=1000),
        ),
        "markets": (
            market_of(0),
            market_of(1),
            market_of(0, BTC, tick=1, lot=10**4),
            market_of(1, BTC, tick=1, lot=10**4),
        ),
        "cover_ratio_bps": 12_000,
        "value_token": USD,
        "unsettled_limit": 10**12,
        "prices": ((ETH, 2_000 * 10**6), (USD, 10**18), (BTC, 60_000 * 10**6 * 10**10)),
        "grace_s": 10,
        "evidence_s": 20,
        "verdict_s": 20,
        "appeal_s": 20,
        "claim_s": 60,
    }
    return Terms(**{**values, **changes})


def make_fixed(**changes: Any) -> FixedPart:
    values: dict[str, Any] = {
        "chain_id": CHAIN_ID,
        "participants": tuple(s.address for s in SIGNERS),
        "channel_nonce": START_MS,
        "app_definition": ADJUDICATOR,
        "challenge_duration_s": 60,
    }
    return FixedPart(**{**values, **changes})


TERMS = make_terms()
FIXED = make_fixed()
NODE_DOMAIN = node_domain(CHAIN_ID, ADJUDICATOR)
CUSTODY_DOMAINS = tuple(custody_domain(CHAIN_ID, custody) for custody in CUSTODIES)
LOCK_USD = 10**12  # a million: covers whatever the tests trade


def user_order(broker: int, side: int, price: int, lots: int, *, nonce: int = 1, **changes: Any) -> SignedOrder:
    """An order of broker `broker`'s user, for that broker's ETH market unless told otherwise."""
    values: dict[str, Any] = {
        "owner": USERS[broker].address,
        "market_id": market_of(broker).market_id,
        "side": side,
        "order_type": OrderType.LIMIT,
        "time_in_force": TimeInForce.GTC,
        "price_ticks": price,
        "amount_lots": lots,
        "valid_until_ms": UNTIL_MS,
        "nonce": nonce,
    }
    order = Order(**{**values, **changes})
    return sign_order(order, CUSTODY_DOMAINS[broker], USERS[broker].sign)


def create_call(broker: int, side: int, price: int, lots: int, *, nonce: int = 1, **changes: Any) -> dict[str, Any]:
    """`order.create` by participant `broker` on the other's ETH market. `changes` replace params."""
    signed = changes.pop("signed", None) or user_order(broker, side, price, lots, nonce=nonce)
    params = {
        "market": format_hex(market_of(1 - broker).market_id),
        "side": "bs"[side],
        "price": price,
        "amount": lots,
        "tif": "GTC",
        "until": UNTIL_MS,
        "order": order_to_json(signed),
    }
    return {"jsonrpc": "2.0", "id": nonce, "method": "order.create", "params": {**params, **changes}}


def notify_call(ref: int, status: str, left: int, fills: list[list[Any]] | None = None) -> dict[str, Any]:
    params = {"order": ref, "status": status, "left": left, "fills": fills or []}
    return {"jsonrpc": "2.0", "method": "order.notify", "params": params}


def make_entry(
    sender: int, body: str, *, seq: int = 1, prev: Hash = ZERO_HASH, fixed: FixedPart = FIXED, ts_ms: int = START_MS
) -> Entry:
    to = fixed.participants[1 - sender]
    digest = entry_digest(NODE_DOMAIN, to=to, channel_id=fixed.channel_id, seq=seq, prev=prev, ts_ms=ts_ms, body=body)
    return Entry(
        sender=fixed.participants[sender],
        to=to,
        channel_id=fixed.channel_id,
        seq=seq,
        prev=prev,
        ts_ms=ts_ms,
        body=body,
        signature=SIGNERS[sender].sign(digest),
        entry_hash=digest,
    )


def body_of(*calls: dict[str, Any]) -> str:
    return dumps(calls[0] if len(calls) == 1 else list(calls))


def signed_lock(owner: int, amount: int = LOCK_USD, terms: Terms = TERMS, fixed: FixedPart = FIXED) -> SignedLock:
    lock = Lock(
        channel_id=fixed.channel_id,
        terms_hash=terms.terms_hash,
        owner=fixed.participants[owner],
        token=USD,
        amount=amount,
        expiry_s=2_000_000_000,
        open_by_s=1_800_000_000,
    )
    return SignedLock(lock=lock, signature=XLN.sign(lock.digest(collateral_domain(CHAIN_ID, COLLATERAL))))


def with_entry(channel: Channel, entry: Entry) -> Channel:
    return add_entry(channel, entry, parse_calls(entry, channel.fixed, channel.terms))


class Side:
    """One node's side: see the module docstring. Every received message is JSON, as it would be on the wire."""

    def __init__(self, me: int, terms: Terms = TERMS, fixed: FixedPart = FIXED, lock_amount: int = LOCK_USD) -> None:
        self.me = me
        self.signer = SIGNERS[me]
        self.channel = open_channel(fixed, terms, self.signer.address)
        self.out: deque[dict[str, Any]] = deque()  # towards the other side
        self.sent: list[Entry] = []
        self.records: list[Record] = []
        self.last_refusal: dict[str, Any] | None = None
        self.cosigned: dict[int, Hash] = {}
        self.lock_amount = lock_amount
        self.final_outcome: Hash | None = None
        self.signed: set[Hash] = set()

    def opened(self) -> "Side":
        """Both locks are signed and on chain."""
        for owner in (0, 1):
            self.channel = lock_signed(self.channel, owner, USD, self.lock_amount)
            self.channel = lock_confirmed(self.channel, owner, USD, self.lock_amount, self.channel.terms.terms_hash)
            self.records.append(signed_lock(owner, self.lock_amount, self.channel.terms, self.channel.fixed))
        return self

    def send_calls(self, *calls: dict[str, Any]) -> Entry:
        view = self.channel.view
        entry = make_entry(
            self.me,
            body_of(*calls),
            seq=view.last_seq[self.me] + 1,
            prev=view.last_hash[self.me],
            fixed=self.channel.fixed,
        )
        self.channel = with_entry(self.channel, entry)
        self.sent.append(entry)
        self.records.append(entry)
        self.out.append({"entry": entry_to_json(entry)})
        return entry

    def send_create(self, side: int, price: int, lots: int, *, nonce: int = 1) -> int:
        """Returns the order's reference."""
        return self.send_calls(create_call(self.me, side, price, lots, nonce=nonce)).seq * MAX_BATCH

    def propose(self, now_ms: int = START_MS) -> Proposal | None:
        self.channel, proposal = propose(self.channel, now_ms)
        if proposal is not None:
            self.out.append(self._proposal_message(proposal))
        return proposal

    def propose_wrongly(self) -> None:
        """A faulty mover: application data that the entries do not lead to, signed all the same."""
        self.channel, proposal = propose(self.channel, START_MS)
        if proposal is None:
            return
        variable = VariablePart(outcome=proposal.state.variable.outcome, app_data=b"mine")
        state = State(
            fixed=proposal.state.fixed, turn=proposal.state.turn, is_final=proposal.state.is_final, variable=variable
        )
        wrong = replace(proposal, state=state)
        self.channel = replace(self.channel, mine=wrong)
        self.out.append(self._proposal_message(wrong))

    def _sign(self, state: State) -> bytes:
        """Checks what a signature must never do: after a final state, sign another outcome or go on."""
        if self.final_outcome is not None and state.digest not in self.signed:
            assert state.is_final
            assert state.outcome_hash == self.final_outcome
        if state.is_final:
            self.final_outcome = state.outcome_hash
        self.signed.add(state.digest)
        return self.signer.sign(state.digest)

    def _proposal_message(self, proposal: Proposal) -> dict[str, Any]:
        return {
            "propose": {
                "turn": proposal.state.turn,
                "final": proposal.state.is_final,
                "t": proposal.time_ms,
                "runs": runs_to_json(proposal.runs),
                "hash": format_hex(proposal.state.state_hash),
                "sig": format_hex(self._sign(proposal.state)),
            }
        }

    def close(self) -> None:
        self.channel = request_close(self.channel)
        self.out.append({"close": True})

    def resync(self, peer_last_seq: int) -> None:
        """After a reconnect: what the other side lacks, then answers that may be lost, then what is outstanding."""
        self.out.extend({"entry": entry_to_json(entry)} for entry in self.sent[peer_last_seq:])
        if self.channel.phase.value in ("closing", "final"):
            self.out.append({"close": True})
        if self.last_refusal is not None:
            self.out.append(self.last_refusal)
        last = self.channel.cosigned
        if last is not None and last.state.turn % 2 != self.me:
            self.out.append(self._countersignature_message(last.state))
        if self.channel.mine is not None:
            self.out.append(self._proposal_message(self.channel.mine))

    def _countersignature_message(self, state: State) -> dict[str, Any]:
        signature = format_hex(self.signer.sign(state.digest))
        return {"countersign": {"turn": state.turn, "hash": format_hex(state.state_hash), "sig": signature}}

    def receive(self, message: dict[str, Any]) -> None:
        """Raises whatever the core raises."""
        peer = self.channel.fixed.participants[1 - self.me]
        match message:
            case {"entry": raw}:
                entry = entry_from_json(raw, NODE_DOMAIN, peer, self.signer.address)
                self.channel = with_entry(self.channel, entry)
                self.records.append(entry)
            case {"propose": raw}:
                self._receive_proposal(raw, peer)
            case {"countersign": raw}:
                signature = bytes.fromhex(raw["sig"][2:])
                self.channel, proposal = receive_countersignature(
                    self.channel, raw["turn"], Hash(bytes.fromhex(raw["hash"][2:]))
                )
                if proposal is not None:
                    require_signer(proposal.state.digest, signature, peer)
                    self._record(proposal, self.signer.sign(proposal.state.digest), signature)
            case {"refuse": raw}:
                self.channel, _ = receive_refusal(self.channel, raw["turn"], Hash(bytes.fromhex(raw["hash"][2:])))
            case {"close": True}:
                if self.channel.phase.value == "active":
                    self.channel = request_close(self.channel)
            case _:
                raise AssertionError(message)
        check(self.channel)

    def _receive_proposal(self, raw: dict[str, Any], peer: Address) -> None:
        if self.last_refusal is not None and self.last_refusal["refuse"]["turn"] == raw["turn"]:
            self.out.append(self.last_refusal)
            return
        signature, state_hash = bytes.fromhex(raw["sig"][2:]), Hash(bytes.fromhex(raw["hash"][2:]))
        self.channel, answer = receive_proposal(
            self.channel,
            turn=raw["turn"],
            is_final=raw["final"],
            time_ms=raw["t"],
            runs=runs_from_json(raw["runs"]),
            state_hash=state_hash,
        )
        if isinstance(answer, Countersign):
            state = answer.proposal.state
            require_signer(state.digest, signature, peer)
            mine = self._sign(state)
            if not answer.repeated:
                self._record(answer.proposal, mine, signature)
            self.out.append(self._countersignature_message(state))
        else:
            self.last_refusal = {"refuse": {"turn": raw["turn"], "hash": raw["hash"], "code": answer.code.label}}
            self.out.append(self.last_refusal)

    def _record(self, proposal: Proposal, mine: bytes, theirs: bytes) -> None:
        state = proposal.state
        assert all(turn < state.turn for turn in self.cosigned), "turns strictly increase"
        self.cosigned[state.turn] = state.state_hash
        self.records.append(
            StateRecord(
                turn=state.turn,
                is_final=state.is_final,
                time_ms=proposal.time_ms,
                runs=proposal.runs,
                state_hash=state.state_hash,
                signatures=(mine, theirs) if self.me == 0 else (theirs, mine),
            )
        )


def deliver(sender: Side, receiver: Side, count: int | None = None) -> None:
    """Hands over the first `count` messages, or all."""
    for _ in range(len(sender.out) if count is None else min(count, len(sender.out))):
        receiver.receive(sender.out.popleft())


def drain(a: Side, b: Side, *, rounds: int = 200) -> None:
    """Delivers everything and proposes until neither has anything to say."""
    for _ in range(rounds):
        busy = False
        for one, other in ((a, b), (b, a)):
            busy |= one.propose() is not None or bool(one.out)
            deliver(one, other)
        if not busy:
            return
    raise AssertionError("the two sides do not come to rest")


def open_pair(terms: Terms = TERMS, lock_amount: int = LOCK_USD) -> tuple[Side, Side]:
    """Two sides with turns 0 and 1 co-signed."""
    a, b = Side(0, terms, lock_amount=lock_amount).opened(), Side(1, terms, lock_amount=lock_amount).opened()
    drain(a, b)
    return a, b


def order_record(broker: int, signed: SignedOrder) -> OrderRecord:
    return OrderRecord(broker=broker, order=signed)
