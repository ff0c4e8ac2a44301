"""Two brokers in lockstep that write journals, for tests of who reads them: any deployment, real signatures.

`Brokers` keeps one `Channel` per side and both journals as JSON texts, as they would upload them.
"""

from typing import Any

from channel.calls import MAX_BATCH, parse_calls
from channel.entry import Entry, entry_digest
from channel.journal import OrderRecord, Record, StateRecord, header_to_json, record_to_json
from channel.locks import SignedLock
from channel.orders import Order, OrderType, SignedOrder, TimeInForce, order_to_json, sign_order
from channel.signing import Signer
from channel.state import FixedPart
from channel.strictjson import dumps
from channel.terms import Market, Terms, Token
from channel.transition import (
    Countersign,
    Proposal,
    add_entry,
    lock_confirmed,
    lock_signed,
    open_channel,
    propose,
    receive_countersignature,
    receive_proposal,
    request_close,
)
from channel.typed import custody_domain, node_domain
from channel.units import ZERO_ADDRESS, Address, format_hex

ETH = ZERO_ADDRESS
LOT_WEI = 10**14


def eth_market(holder: Address, chain_id: int, usd: Address) -> Market:
    """Lots of 0.0001 ETH, ticks of 0.01 USD, which is one base unit of a 6-decimal USD a lot."""
    return Market(holder=holder, chain_id=chain_id, base=ETH, quote=usd, tick_quote=1, lot_base=LOT_WEI)


def eth_usd_terms(
    fixed: FixedPart, custodies: tuple[Address, Address], collateral: Address, usd: Address, **changes: Any
) -> Terms:
    values: dict[str, Any] = {
        "custodies": custodies,
        "collateral": collateral,
        "tokens": (Token(address=ETH, symbol="ETH", decimals=18, haircut_bps=2000),
                   Token(address=usd, symbol="USD", decimals=6)),
        "markets": tuple(eth_market(p, fixed.chain_id, usd) for p in fixed.participants),
        "cover_ratio_bps": 12_000,
        "value_token": usd,
        "unsettled_limit": 10**12,
        "prices": ((ETH, 2_000 * 10**6), (usd, 10**18)),
        "grace_s": 1,
        "evidence_s": 2,
        "verdict_s": 2,
        "appeal_s": 2,
        "claim_s": 10,
    }  # fmt: skip
    return Terms(**{**values, **changes})


class Brokers:
    """See the module docstring. `signers` in the order of the participants; `users`: one of each broker."""

    def __init__(
        self,
        fixed: FixedPart,
        terms: Terms,
        signers: tuple[Signer, Signer],
        users: tuple[Signer, Signer],
        *,
        now_ms: int,
    ) -> None:
        self.fixed, self.terms, self.signers, self.users = fixed, terms, signers, users
        self.now_ms = now_ms
        self.channels = [open_channel(fixed, terms, signer.address) for signer in signers]
        header = dumps(header_to_json(fixed, terms))
        self.journals: tuple[list[str], list[str]] = ([header], [header])
        self.last: tuple[Proposal, tuple[bytes, bytes]] | None = None
        self._nonce = 0

    def _append(self, record: Record, *brokers: int) -> None:
        text = dumps(record_to_json(record, self.fixed))
        for broker in brokers or (0, 1):
            self.journals[broker].append(text)

    def lock(self, owner: int, signed: SignedLock, *, confirmed: bool = True) -> None:
        lock = signed.lock
        for side in (0, 1):
            channel = lock_signed(self.channels[side], owner, lock.token, lock.amount)
            if confirmed:
                channel = lock_confirmed(channel, owner, lock.token, lock.amount, lock.terms_hash)
            self.channels[side] = channel
        self._append(signed)

    def open(self, locks: tuple[SignedLock, SignedLock]) -> None:
        """Turn 0 with the first lock, turn 1 with both."""
        self.lock(0, locks[0])
        self.turn()
        self.lock(1, locks[1])
        self.turn()

    def turn(self) -> Proposal:
        """The mover's next proposal, countersigned."""
        mover = self.channels[0].next_turn % 2
        other = 1 - mover
        self.channels[mover], proposal = propose(self.channels[mover], self.now_ms)
        assert proposal is not None, "there is nothing to propose"
        state = proposal.state
        self.channels[other], answer = receive_proposal(
            self.channels[other],
            turn=state.turn,
            is_final=state.is_final,
            time_ms=proposal.time_ms,
            runs=proposal.runs,
            state_hash=state.state_hash,
        )
        assert isinstance(answer, Countersign), answer
        self.channels[mover], _ = receive_countersignature(self.channels[mover], state.turn, state.state_hash)
        signatures = (self.signers[0].sign(state.digest), self.signers[1].sign(state.digest))
        self.last = (proposal, signatures)
        self._append(
            StateRecord(
                turn=state.turn,
                is_final=state.is_final,
                time_ms=proposal.time_ms,
                runs=proposal.runs,
                state_hash=state.state_hash,
                signatures=signatures,
            )
        )
        return proposal

    def entry(self, sender: int, *calls: dict[str, Any]) -> Entry:
        view, to = self.channels[sender].view, self.fixed.participants[1 - sender]
        seq, prev, body = (
            view.last_seq[sender] + 1,
            view.last_hash[sender],
            dumps(calls[0] if len(calls) == 1 else calls),
        )
        domain = node_domain(self.fixed.chain_id, self.fixed.app_definition)
        digest = entry_digest(
            domain, to=to, channel_id=self.fixed.channel_id, seq=seq, prev=prev, ts_ms=self.now_ms, body=body
        )
        entry = Entry(
            sender=self.fixed.participants[sender],
            to=to,
            channel_id=self.fixed.channel_id,
            seq=seq,
            prev=prev,
            ts_ms=self.now_ms,
            body=body,
            signature=self.signers[sender].sign(digest),
            entry_hash=digest,
        )
        parsed = parse_calls(entry, self.fixed, self.terms)
        for side in (0, 1):
            self.channels[side] = add_entry(self.channels[side], entry, parsed)
        self._append(entry)
        return entry

    def order(self, broker: int, side: int, price: int, lots: int, **changes: Any) -> SignedOrder:
        """Signed by the user of `broker`, for that broker's ETH market."""
        self._nonce += 1
        market = next(m for m in self.terms.markets if m.holder == self.fixed.participants[broker])
        values: dict[str, Any] = {
            "owner": self.users[broker].address,
            "market_id": market.market_id,
            "side": side,
            "order_type": OrderType.LIMIT,
            "time_in_force": TimeInForce.GTC,
            "price_ticks": price,
            "amount_lots": lots,
            "valid_until_ms": self.now_ms + 3_600_000,
            "nonce": self._nonce,
        }
        domain = custody_domain(self.fixed.chain_id, self.terms.custodies[broker])
        return sign_order(Order(**{**values, **changes}), domain, self.users[broker].sign)

    def create(self, owner: int, signed: SignedOrder) -> int:
        """The order goes to the other broker's market. Returns its reference."""
        order = signed.order
        market = next(m for m in self.terms.markets if m.holder == self.fixed.participants[1 - owner])
        params = {
            "market": format_hex(market.market_id),
            "side": "bs"[order.side],
            "price": order.price_ticks,
            "amount": order.amount_lots,
            "tif": "GTC",
            "until": order.valid_until_ms,
            "order": order_to_json(signed),
        }
        entry = self.entry(owner, {"jsonrpc": "2.0", "id": 1, "method": "order.create", "params": params})
        return entry.seq * MAX_BATCH

    def fill(self, venue: int, ref: int, price: int, lots: int, counter: SignedOrder, *, left: int = 0) -> None:
        """The venue's notice; its own user's order goes into its own journal as evidence."""
        fills = [[price, lots, format_hex(counter.order_id)]]
        params = {"order": ref, "status": "filled", "left": left, "fills": fills}
        self.entry(venue, {"jsonrpc": "2.0", "method": "order.notify", "params": params})
        self._append(OrderRecord(broker=venue, order=counter), venue)

    def trade(self, owner: int, side: int, price: int, lots: int) -> None:
        """A user of `owner` trades with one of the other broker's, on that broker's book, and a turn lists it."""
        ref = self.create(owner, self.order(owner, side, price, lots))
        self.fill(1 - owner, ref, price, lots, self.order(1 - owner, 1 - side, price, lots))
        self.turn()

    def close(self) -> Proposal:
        self.channels = [request_close(channel) for channel in self.channels]
        return self.turn()
