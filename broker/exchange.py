"""A broker's exchange: its books, its users' orders and balances, and the orders that cross to and from its peers.

A deterministic state machine: every method is one action of a user, the chain or a peer at a given time, checks
everything before it changes anything, and returns effects. It does no I/O and sees no clock. A trade has a party on
each side, a user of this broker or a peer (one order of a peer's user); value moves through the ledger for users and
through the channel's notices for peers, and after every action the ledger's net with the peers equals the channels'
(law C).

An order that is signed for one of this broker's markets is split by a plan (from the router): parts that a peer's book
serves better go there as IOC orders, the rest is placed here. What comes back unfilled rests here, if the order rests
at all. An order that is signed for a peer's market goes there whole. DESIGN section 8.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.clob.book import Fill, OrderBook, OrderId, Side
from broker.desk import Desk, flush_all
from broker.effects import Answer, BookChanged, Effect, Journalled, OrderChanged, Traded
from broker.ledger import Ledger
from channel import transition
from channel.calls import (
    BOOK_SUBSCRIBE,
    BOOK_UNSUBSCRIBE,
    MAX_FILLS,
    ORDER_CREATE,
    ORDER_NOTIFY,
    ORDER_UPDATE,
    Call,
    CancelOrder,
    CreateOrder,
    Notice,
    Status,
    Subscribe,
    Void,
)
from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.journal import OrderRecord
from channel.orders import SignedOrder, TimeInForce, order_to_json
from channel.position import OpenOrder
from channel.terms import SIDES, Market
from channel.transition import Phase
from channel.units import ZERO_HASH, Address, ChannelId, Hash, MarketId, format_address, format_hex

MAX_VALIDITY_MS = 90 * 24 * 3600 * 1000
MAX_REMOTE_VALIDITY_MS = 30_000
MAX_CLOSED_ORDERS = 20_000
MAX_RESTING_ORDERS = 900_000  # of a book; it takes a million, so that peers' orders and what comes back still fit
SNAPSHOT_LEVELS = 1_000
PeerRef = tuple[ChannelId, int]  # (channel, reference of the order there)


@dataclass(slots=True)
class UserOrder:
    """One order of a user of this broker. Lots: total = filled + local + remote + cancelled."""

    signed: SignedOrder
    market: Market  # whose tick and lot it is counted in: this broker's, or the peer's where it was signed for that
    book_id: OrderId
    limit_ticks: int
    local_lots: int = 0
    filled_lots: int = 0
    filled_quote: int = 0
    cancelled_lots: int = 0
    status: str = "open"
    cancelling: bool = False
    remote: dict[PeerRef, int] = field(default_factory=dict)

    @property
    def owner(self) -> Address:
        return self.signed.order.owner

    @property
    def side(self) -> int:
        return self.signed.order.side

    @property
    def remote_lots(self) -> int:
        return sum(self.remote.values())

    @property
    def rests(self) -> bool:
        return self.signed.order.time_in_force is TimeInForce.GTC and not self.cancelling

    @property
    def pays(self) -> Address:
        return self.market.quote if self.side == 0 else self.market.base

    def needs(self, lots: int) -> int:
        """Base units of what the order pays with that must be locked for `lots`."""
        return self.market.quote_amount(self.limit_ticks, lots) if self.side == 0 else self.market.base_amount(lots)


@dataclass(slots=True)
class PeerOrder:
    """An order of a peer's user in one of this broker's books."""

    desk: Desk
    ref: int
    call: CreateOrder
    book_id: OrderId
    left_lots: int

    @property
    def side(self) -> int:
        return self.call.side


Party = UserOrder | PeerOrder


@dataclass(slots=True)
class Withdrawal:
    """`deadline_s` is block time; `approval` this broker's signature."""

    withdrawal_id: Hash
    user: Address
    token: Address
    amount: int
    to: Address
    deadline_s: int
    user_signature: bytes
    status: str = "pending"


class Exchange:
    """See the module docstring."""

    def __init__(self, markets: Iterable[Market], address: Address) -> None:
        self.address = address
        self.markets: dict[MarketId, Market] = {m.market_id: m for m in markets}
        self.books: dict[MarketId, OrderBook] = {market_id: OrderBook() for market_id in self.markets}
        self.book_seq: dict[MarketId, int] = dict.fromkeys(self.markets, 0)
        self.ledger = Ledger()
        self.desks: dict[ChannelId, Desk] = {}
        self.orders: dict[Hash, UserOrder] = {}
        self.closed: OrderedDict[Hash, UserOrder] = OrderedDict()
        self.subscribers: dict[MarketId, set[ChannelId]] = {market_id: set() for market_id in self.markets}
        self.withdrawals: dict[Hash, Withdrawal] = {}
        self.payouts: dict[ChannelId, dict[tuple[Address, bool], int]] = {}  # (token, outgoing) -> base units
        self._seen: dict[Hash, int] = {}  # order id -> valid until, so that a replay is known as long as it could pass
        self._expiries: list[tuple[int, Hash]] = []
        self._parties: dict[OrderId, Party] = {}  # every order that rests in a book
        self._resting: dict[ChannelId, dict[int, PeerOrder]] = {}  # peers' among them, by reference
        self._remote: dict[PeerRef, UserOrder] = {}  # users' orders at peers
        self._evidenced: set[tuple[ChannelId, Hash]] = set()

    # -- users' orders

    def place(
        self, signed: SignedOrder, plan: Iterable[tuple[ChannelId, int]], limit_ticks: int, now_ms: int
    ) -> list[Effect]:
        """Takes a user's order (signature verified).

        `plan`: lots for each channel; `limit_ticks`: the order's limit, or the worst price that a market order takes.

        Raises LocalRefusal ORDER_REPLAYED, ORDER_MARKET, ORDER_EXPIRED, ORDER_BALANCE, ORDER_UNKNOWN, ORDER_OWNER,
        ORDER_AMOUNT, ORDER_UNCOVERED, ORDER_LIMIT, CHANNEL_PHASE.
        """
        order = signed.order
        self._admit(signed, now_ms)
        market, away = self._market_for(order.market_id)
        if away is None and len(self.books[order.market_id]) >= MAX_RESTING_ORDERS:
            raise LocalRefusal(Code.BUSY, f"the book is full: {MAX_RESTING_ORDERS} orders rest in it")
        live = UserOrder(signed, market, OrderId(signed.order_id), limit_ticks)
        parts = [(self._desk(channel_id), lots) for channel_id, lots in plan if lots > 0]
        if away is not None:
            parts = [(away, order.amount_lots)]
            objection = away.objection(self._remote_order(live, away, market, order.amount_lots), counted=False)
            if objection is not None:
                raise LocalRefusal(*objection)
        if sum(lots for _, lots in parts) > order.amount_lots:
            raise LocalRefusal(Code.ORDER_AMOUNT, "the plan routes more than the order's amount")
        replaced = self._replaced(order.replaces, live)
        effects: list[Effect] = []
        if replaced is not None and self._amend_in_place(replaced, live):
            self._register(live)
            return [OrderChanged(replaced.signed.order_id), OrderChanged(signed.order_id), *self._changes()]
        if replaced is not None:
            effects += self._withdraw_order(replaced, "replaced")
        self.ledger.lock(live.owner, live.pays, live.needs(order.amount_lots))
        self._register(live)
        local = order.amount_lots
        for desk, lots in parts:
            sent = self._send_remote(live, desk, lots, now_ms)
            if sent is not None:
                effects += sent
                local -= lots
        if away is not None:
            local = 0
        effects += self._place_here(live, local, now_ms)
        return [*effects, OrderChanged(signed.order_id), *self._finish(now_ms)]

    def _admit(self, signed: SignedOrder, now_ms: int) -> None:
        order = signed.order
        if signed.order_id in self._seen:
            raise LocalRefusal(Code.ORDER_REPLAYED, "this order was placed before; sign one with another nonce")
        if not now_ms < order.valid_until_ms <= now_ms + MAX_VALIDITY_MS:
            raise LocalRefusal(
                Code.ORDER_EXPIRED, "validUntil must lie in the future, at most 90 days ahead", now=now_ms
            )

    def _market_for(self, market_id: MarketId) -> tuple[Market, Desk | None]:
        """The market an order is signed for; the desk too, if a peer holds it."""
        own = self.markets.get(market_id)
        if own is not None:
            return own, None
        for desk in self.desks.values():
            market = desk.channel.terms.market(market_id)
            if market is not None and market.holder == desk.peer and desk.is_trading:
                return market, desk
        raise LocalRefusal(Code.ORDER_MARKET, f"there is no market {format_hex(market_id)} here or at a peer")

    def _desk(self, channel_id: ChannelId) -> Desk:
        desk = self.desks.get(channel_id)
        if desk is None:
            raise LocalRefusal(Code.CHANNEL_UNKNOWN, f"there is no channel {format_hex(channel_id)}")
        return desk

    def _replaced(self, order_id: Hash, live: UserOrder) -> UserOrder | None:
        """The order that `live` amends. Raises what `place` says; the funds for the change must be there."""
        if order_id == ZERO_HASH:
            return None
        old = self.orders.get(order_id)
        if old is None:
            raise LocalRefusal(Code.ORDER_UNKNOWN, "the order to amend is not open")
        if old.owner != live.owner:
            raise LocalRefusal(Code.ORDER_OWNER, "only its owner amends an order")
        if old.market != live.market or old.side != live.side or old.remote:
            raise LocalRefusal(Code.ORDER_TYPE, "an amendment keeps market and side, and waits for what is at a peer")
        needed = live.needs(live.signed.order.amount_lots)
        available = self._free(live.owner, live.pays) + old.needs(old.local_lots)
        if needed > available:
            raise LocalRefusal(
                Code.ORDER_BALANCE, f"the amended order needs {needed} base units, {available} would be free",
                needed=needed, free=available,
            )  # fmt: skip
        return old

    def _free(self, user: Address, token: Address) -> int:
        return self.ledger.balance(user, token).free

    def _amend_in_place(self, old: UserOrder, live: UserOrder) -> bool:
        """A smaller amount at the same price keeps its place in the queue."""
        lots = live.signed.order.amount_lots
        if not live.rests or live.limit_ticks != old.limit_ticks or lots > old.local_lots:
            return False
        self.books[old.market.market_id].reduce(old.book_id, lots)
        self.ledger.unlock(old.owner, old.pays, old.needs(old.local_lots - lots))
        live.book_id, live.local_lots = old.book_id, lots
        self._parties[live.book_id] = live
        old.local_lots = 0
        self._close(old, "replaced")
        return True

    def _register(self, live: UserOrder) -> None:
        order = live.signed.order
        self.orders[live.signed.order_id] = live
        self._seen[live.signed.order_id] = order.valid_until_ms
        heapq.heappush(self._expiries, (order.valid_until_ms, live.signed.order_id))

    def _remote_order(self, live: UserOrder, desk: Desk, market: Market, lots: int, ref: int = 0) -> OpenOrder:
        return OpenOrder(desk.me, ref, market, live.side, live.limit_ticks, lots, live.signed.order_id)

    def _send_remote(self, live: UserOrder, desk: Desk, lots: int, now_ms: int) -> list[Effect] | None:
        """Sends `lots` of an order to a peer's market of the same shape; None when the channel cannot take them."""
        order = live.signed.order
        market = self._peer_market(live.market, desk)
        if market is None or desk.objection(self._remote_order(live, desk, market, lots), counted=False) is not None:
            return None
        away = order.market_id == market.market_id
        tif = order.time_in_force if away else TimeInForce.IOC
        until = order.valid_until_ms
        if tif is TimeInForce.IOC:
            until = min(until, now_ms + MAX_REMOTE_VALIDITY_MS)
        params: dict[str, object] = {
            "market": format_hex(market.market_id),
            "side": SIDES[live.side],
            "price": live.limit_ticks,
            "amount": lots,
            "tif": tif.name,
            "until": until,
            "order": order_to_json(live.signed),
        }
        ref, effects = desk.add_call(ORDER_CREATE, params, now_ms, answered=True)
        effects += desk.flush(now_ms)  # the next order's cover is tested with this one counted
        live.remote[(desk.channel_id, ref)] = lots
        self._remote[(desk.channel_id, ref)] = live
        return effects

    def _peer_market(self, market: Market, desk: Desk) -> Market | None:
        for candidate in desk.channel.terms.markets:
            if candidate.holder == desk.peer and candidate.same_shape(market):
                return candidate
        return None

    def _place_here(self, live: UserOrder, lots: int, now_ms: int) -> list[Effect]:
        """Matches `lots` in this broker's book; what is left rests, or is cancelled and its funds freed."""
        effects: list[Effect] = []
        if lots:
            placement = self.books[live.market.market_id].place(
                order_id=live.book_id,
                owner=live.owner,
                side=Side(live.side),
                price_ticks=live.limit_ticks,
                lots=lots,
                rest=live.rests,
            )
            effects = self._settle_fills(live, live.market, placement.fills, now_ms)
            live.local_lots = placement.resting_lots
            if placement.resting_lots:
                self._parties[live.book_id] = live
            self._drop_lots(live, placement.cancelled_lots)
        self._close_if_done(live)
        return effects

    def _drop_lots(self, live: UserOrder, lots: int) -> None:
        live.cancelled_lots += lots
        self.ledger.unlock(live.owner, live.pays, live.needs(lots))

    def cancel(self, order_id: Hash, owner: Address, now_ms: int) -> list[Effect]:
        """Cancels what is open of a user's order. What is at a peer is cancelled by the peer's notice.

        Raises LocalRefusal ORDER_UNKNOWN, ORDER_OWNER.
        """
        live = self.orders.get(order_id)
        if live is None:
            raise LocalRefusal(Code.ORDER_UNKNOWN, f"no open order {format_hex(order_id)}")
        if live.owner != owner:
            raise LocalRefusal(Code.ORDER_OWNER, "only its owner cancels an order")
        if live.cancelling:
            return []  # the peer has been asked
        desks = {self.desks[channel_id] for channel_id, _ in live.remote}
        if any(transition.is_full(desk.channel) for desk in desks):
            raise LocalRefusal(Code.BUSY, "too many entries wait for the peer's signature")
        effects = self._withdraw_order(live, "cancelled")
        for channel_id, ref in sorted(live.remote):
            if not self.desks[channel_id].takes_entries:
                continue  # frozen: nobody can be told
            params: dict[str, object] = {"op": "cancel", "order": ref}
            effects += self.desks[channel_id].add_call(ORDER_UPDATE, params, now_ms, answered=True)[1]
        return [*effects, OrderChanged(order_id), *self._finish(now_ms)]

    def _withdraw_order(self, live: UserOrder, status: str) -> list[Effect]:
        """Takes what rests here out of the book and frees its funds."""
        live.cancelling = True
        if live.local_lots:
            self.books[live.market.market_id].cancel(live.book_id)
            del self._parties[live.book_id]
            lots, live.local_lots = live.local_lots, 0
            self._drop_lots(live, lots)
        self._close_if_done(live, status)
        return [OrderChanged(live.signed.order_id)] if status == "replaced" else []

    def _close_if_done(self, live: UserOrder, status: str | None = None) -> None:
        if live.local_lots or live.remote:
            return
        filled = live.filled_lots == live.signed.order.amount_lots
        self._close(live, "filled" if filled else status or "cancelled")

    def _close(self, live: UserOrder, status: str) -> None:
        live.status = status
        if self.orders.pop(live.signed.order_id, None) is not None:
            self.closed[live.signed.order_id] = live
            if len(self.closed) > MAX_CLOSED_ORDERS:
                self.closed.popitem(last=False)

    def expire(self, now_ms: int) -> list[Effect]:
        """Ends every order whose validity has passed, here and of peers."""
        effects: list[Effect] = []
        while self._expiries and self._expiries[0][0] <= now_ms:
            _, order_id = heapq.heappop(self._expiries)
            self._seen.pop(order_id, None)
            live = self.orders.get(order_id)
            if live is not None and not live.cancelling:
                effects += [*self._withdraw_order(live, "expired"), OrderChanged(order_id)]
            party = self._parties.get(OrderId(order_id))
            if isinstance(party, PeerOrder):
                effects += self._end_peer_order(party, Status.EXPIRED, Code.ORDER_EXPIRED.label, now_ms)
        return [*effects, *self._finish(now_ms)]

    @property
    def next_expiry_ms(self) -> int | None:
        return self._expiries[0][0] if self._expiries else None

    def _trim_expiries(self) -> None:
        """Forgets the expiries of peers' orders that are closed: they may lie as far ahead as the peer likes."""
        if len(self._expiries) > 2 * (len(self._seen) + len(self._parties)) + 1024:
            kept = [e for e in self._expiries if e[1] in self._seen or OrderId(e[1]) in self._parties]
            heapq.heapify(kept)
            self._expiries = kept

    # -- settling trades

    def _settle_fills(self, taker: Party, market: Market, fills: Iterable[Fill], now_ms: int) -> list[Effect]:
        """Moves the value of each fill, tells peers whose resting orders were hit, and reports the trades."""
        effects: list[Effect] = []
        hit: dict[OrderId, tuple[PeerOrder, list[list[object]]]] = {}
        for fill in fills:
            maker = self._parties[fill.maker_id]
            buyer, seller = (taker, maker) if taker.side == 0 else (maker, taker)
            self._move(market, buyer, seller, fill.price_ticks, fill.lots)
            effects += self._evidence(taker, maker) + self._evidence(maker, taker)
            if isinstance(maker, UserOrder) and fill.maker_left_lots == 0:
                del self._parties[fill.maker_id]
            if isinstance(maker, PeerOrder):
                if fill.maker_left_lots == 0:
                    self._forget(maker)
                maker.left_lots -= fill.lots
                rows = hit.setdefault(maker.book_id, (maker, []))[1]
                rows.append([fill.price_ticks, fill.lots, format_hex(_order_id(taker))])
            else:
                maker.local_lots -= fill.lots
                effects.append(OrderChanged(maker.signed.order_id))
                self._close_if_done(maker)
            effects.append(Traded(market.market_id, fill.price_ticks, fill.lots, taker.side, False))
        for maker, rows in hit.values():
            effects += self._notify(maker, Status.FILLED, rows, maker.left_lots, "", now_ms)
        return effects

    def _move(self, market: Market, buyer: Party, seller: Party, price_ticks: int, lots: int) -> None:
        base, quote = market.base_amount(lots), market.quote_amount(price_ticks, lots)
        buyer_release = buyer.needs(lots) - quote if isinstance(buyer, UserOrder) else 0
        match buyer, seller:
            case UserOrder(), UserOrder():
                self.ledger.settle_local(
                    buyer=buyer.owner,
                    seller=seller.owner,
                    base=market.base,
                    quote=market.quote,
                    base_amount=base,
                    quote_amount=quote,
                    buyer_release=buyer_release,
                )
            case UserOrder(), PeerOrder():
                self._pay_peer(buyer, market.quote, quote, market.base, base, buyer_release)
            case PeerOrder(), UserOrder():
                self._pay_peer(seller, market.base, base, market.quote, quote, 0)
            case _:
                pass  # two orders of peers: their channels carry both legs
        for party in (buyer, seller):
            if isinstance(party, UserOrder):
                party.filled_lots += lots
                party.filled_quote += quote

    def _pay_peer(
        self, live: UserOrder, pays: Address, pays_amount: int, receives: Address, receives_amount: int, release: int
    ) -> None:
        self.ledger.settle_remote(
            user=live.owner,
            pays=pays,
            pays_amount=pays_amount,
            receives=receives,
            receives_amount=receives_amount,
            release=release,
        )

    def _evidence(self, party: Party, other: Party) -> list[Effect]:
        """The signed order of a user of ours that was filled against a peer's: XLN asks for it before it attests."""
        if not isinstance(party, UserOrder) or not isinstance(other, PeerOrder):
            return []
        key = (other.desk.channel_id, party.signed.order_id)
        if key in self._evidenced:
            return []
        self._evidenced.add(key)
        return [Journalled(key[0], OrderRecord(broker=other.desk.me, order=party.signed))]

    def _notify(
        self, order: PeerOrder, status: Status, fills: list[list[object]], left: int, reason: str, now_ms: int
    ) -> list[Effect]:
        """Adds the binding notice to the entry that `_finish` signs; many fills take several notices."""
        effects: list[Effect] = []
        while len(fills) > MAX_FILLS:
            head, fills = fills[:MAX_FILLS], fills[MAX_FILLS:]
            still = left + sum(int(str(row[1])) for row in fills)
            effects += self._notice_call(order, Status.FILLED, head, still, "", now_ms)
        return effects + self._notice_call(order, status, fills, left, reason, now_ms)

    def _notice_call(
        self, order: PeerOrder, status: Status, fills: list[list[object]], left: int, reason: str, now_ms: int
    ) -> list[Effect]:
        params: dict[str, object] = {"order": order.ref, "status": status.value, "left": left}
        if fills:
            params["fills"] = fills
        if reason:
            params["reason"] = reason
        return order.desk.add_call(ORDER_NOTIFY, params, now_ms, answered=False)[1]

    # -- peers' entries

    def apply_calls(self, desk: Desk, seq: int, calls: tuple[Call, ...], now_ms: int) -> list[Effect]:
        """Executes the calls of a peer's entry that the channel has taken, in their order."""
        effects: list[Effect] = []
        shown: set[MarketId] = set()  # one snapshot of a book for an entry: a batch could ask for hundreds
        for call in calls:
            match call:
                case CreateOrder():
                    effects.append(Answer(desk.channel_id, seq, call.call_id, {"order": call.ref}))
                    effects += self._peer_creates(desk, call, now_ms)
                case CancelOrder():
                    effects.append(Answer(desk.channel_id, seq, call.call_id, {}))
                    effects += self._peer_cancels(desk, call, now_ms)
                case Notice():
                    effects += self._peer_notice(desk, call, now_ms)
                case Subscribe() if call.on and call.market_id in shown:
                    twice = (Code.PARAMS, "one entry asks for a book once")
                    effects.append(Answer(desk.channel_id, seq, call.call_id, None, twice))
                case Subscribe():
                    shown.add(call.market_id)
                    effects.append(self._peer_subscribes(desk, seq, call))
                case Void():
                    effects.append(Answer(desk.channel_id, seq, call.call_id, None, (call.code, call.message)))
        return [*effects, *self._finish(now_ms)]

    def _peer_creates(self, desk: Desk, call: CreateOrder, now_ms: int) -> list[Effect]:
        order = PeerOrder(desk, call.ref, call, _peer_book_id(desk, call.ref), call.lots)
        market = self.markets.get(call.market.market_id)
        book = self.books.get(call.market.market_id)
        if market is None or book is None:
            return self._notify(order, Status.CANCELLED, [], call.lots, Code.ORDER_MARKET.label, now_ms)
        if call.valid_until_ms <= now_ms:
            return self._notify(order, Status.EXPIRED, [], call.lots, Code.ORDER_EXPIRED.label, now_ms)
        extra = 0
        if call.side == 1:  # filled at better bids, we owe more quote than the limit says
            filled = book.preview(Side.SELL, call.price_ticks, call.lots)
            extra = sum(market.quote_amount(price - call.price_ticks, lots) for price, lots in filled)
        objection = desk.objection(_open_order(desk, call), counted=True, extra_quote=extra)
        if objection is not None:
            return self._notify(order, Status.CANCELLED, [], call.lots, objection[0].label, now_ms)
        placement = book.place(
            order_id=order.book_id,
            owner=desk.peer,
            side=Side(call.side),
            price_ticks=call.price_ticks,
            lots=call.lots,
            rest=call.time_in_force is TimeInForce.GTC,
        )
        if placement.resting_lots:
            self._parties[order.book_id] = order
            self._resting.setdefault(desk.channel_id, {})[call.ref] = order
            heapq.heappush(self._expiries, (call.valid_until_ms, Hash(order.book_id)))
            self._trim_expiries()
        order.left_lots = call.lots - sum(fill.lots for fill in placement.fills)
        rows: list[list[object]] = [
            [fill.price_ticks, fill.lots, format_hex(_order_id(self._parties[fill.maker_id]))]
            for fill in placement.fills
        ]
        effects = self._settle_fills(order, market, placement.fills, now_ms)
        if placement.resting_lots:
            status = Status.FILLED if rows else Status.ACCEPTED
        else:
            status = Status.CANCELLED if order.left_lots else Status.FILLED
        reason = "unfilled" if status is Status.CANCELLED else ""
        return effects + self._notify(order, status, rows, order.left_lots, reason, now_ms)

    def _peer_cancels(self, desk: Desk, call: CancelOrder, now_ms: int) -> list[Effect]:
        """Cancels what is open; an order that is closed already was told in its last notice."""
        resting = self._resting.get(desk.channel_id, {})
        refs = list(resting) if call.ref is None else [call.ref]
        effects: list[Effect] = []
        for order in [resting[ref] for ref in refs if ref in resting]:
            effects += self._end_peer_order(order, Status.CANCELLED, "", now_ms)
        return effects

    def _end_peer_order(self, order: PeerOrder, status: Status, reason: str, now_ms: int) -> list[Effect]:
        self.books[order.call.market.market_id].cancel(order.book_id)
        self._forget(order)
        return self._notify(order, status, [], order.left_lots, reason, now_ms)

    def _forget(self, order: PeerOrder) -> None:
        """A peer's order that has left the book."""
        del self._parties[order.book_id]
        del self._resting[order.desk.channel_id][order.ref]

    def _peer_notice(self, desk: Desk, notice: Notice, now_ms: int) -> list[Effect]:
        """A binding notice on an order of our user; the channel has checked it against what is open."""
        key = (desk.channel_id, notice.ref)
        live = self._remote.get(key)
        if live is None:
            raise InvariantBroken(Code.CONSERVATION, f"a notice on order {notice.ref}, which no user has placed")
        effects: list[Effect] = []
        for fill in notice.fills:
            base, quote = live.market.base_amount(fill.lots), live.market.quote_amount(fill.price_ticks, fill.lots)
            release = live.needs(fill.lots) - quote if live.side == 0 else 0
            if live.side == 0:
                self._pay_peer(live, live.market.quote, quote, live.market.base, base, release)
            else:
                self._pay_peer(live, live.market.base, base, live.market.quote, quote, 0)
            live.filled_lots += fill.lots
            live.filled_quote += quote
            live.remote[key] -= fill.lots
            effects.append(Traded(live.market.market_id, fill.price_ticks, fill.lots, live.side, True))
        if notice.status in (Status.CANCELLED, Status.EXPIRED) or notice.left_lots == 0:
            left = live.remote.pop(key)
            del self._remote[key]
            effects += self._return_remote(live, left, now_ms)
        return [*effects, OrderChanged(live.signed.order_id)]

    def _return_remote(self, live: UserOrder, lots: int, now_ms: int) -> list[Effect]:
        """What a peer did not fill rests here, if the order rests at all and is for a market of ours."""
        here = live.market.market_id in self.markets
        if lots and here and live.rests and now_ms < live.signed.order.valid_until_ms:
            if not live.local_lots:
                return self._place_here(live, lots, now_ms)
            # A part rests already: both become one order at the back of its price level.
            self.books[live.market.market_id].cancel(live.book_id)
            del self._parties[live.book_id]
            lots, live.local_lots = lots + live.local_lots, 0
            return self._place_here(live, lots, now_ms)
        self._drop_lots(live, lots)
        self._close_if_done(live)
        return []

    def _peer_subscribes(self, desk: Desk, seq: int, call: Subscribe) -> Effect:
        book = self.books.get(call.market_id)
        if book is None:
            error = (Code.ORDER_MARKET, "this broker has no such market")
            return Answer(desk.channel_id, seq, call.call_id, None, error)
        if not call.on:
            self.subscribers[call.market_id].discard(desk.channel_id)
            return Answer(desk.channel_id, seq, call.call_id, {})
        self.subscribers[call.market_id].add(desk.channel_id)
        return Answer(desk.channel_id, seq, call.call_id, self.snapshot(call.market_id, SNAPSHOT_LEVELS))

    def snapshot(self, market_id: MarketId, levels: int) -> dict[str, object]:
        """The book with its sequence number: [[price in ticks, lots], …], best first."""
        book = self.books[market_id]
        return {
            "market": format_hex(market_id),
            "seq": self.book_seq[market_id],
            "bids": [list(level) for level in book.depth(Side.BUY, levels)],
            "asks": [list(level) for level in book.depth(Side.SELL, levels)],
        }

    def subscribe(self, desk: Desk, market_id: MarketId, on: bool, now_ms: int) -> tuple[int, list[Effect]]:
        """Asks the peer for one of its books; the answer to the reference carries the snapshot."""
        if not desk.takes_entries or transition.is_full(desk.channel):
            raise LocalRefusal(Code.BUSY, "the channel takes no entries now")
        method = BOOK_SUBSCRIBE if on else BOOK_UNSUBSCRIBE
        ref, effects = desk.add_call(method, {"market": format_hex(market_id)}, now_ms, answered=True)
        return ref, [*effects, *self._finish(now_ms)]

    # -- closing a channel

    def close_channel(self, desk: Desk, now_ms: int) -> list[Effect]:
        """Stops new orders on the channel and cancels what both have open there."""
        was_active = desk.channel.phase is Phase.ACTIVE
        desk.request_close()
        if not was_active:
            return []
        effects = self._peer_cancels(desk, CancelOrder(call_id=None, ref=None), now_ms)
        if any(channel_id == desk.channel_id for channel_id, _ in self._remote):
            effects += desk.add_call(ORDER_UPDATE, {"op": "cancel_all"}, now_ms, answered=True)[1]
            for (channel_id, _), live in self._remote.items():
                if channel_id == desk.channel_id and live.market.market_id not in self.markets:
                    live.cancelling = True
        return [*effects, *self._finish(now_ms)]

    def freeze_channel(self, desk: Desk, code: Code, message: str) -> list[Effect]:
        """Stops a channel for good: what the peer has open leaves the books, untold, since nothing is signed any more.

        What users have open at the peer stays reserved: whether it was filled there is for a dispute to say.
        """
        desk.freeze(code, message)
        if desk.channel.phase is not Phase.FROZEN:
            return []
        for order in list(self._resting.get(desk.channel_id, {}).values()):
            self.books[order.call.market.market_id].cancel(order.book_id)
            self._forget(order)
        for channels in self.subscribers.values():
            channels.discard(desk.channel_id)
        return self._changes()

    # -- withdrawals

    def withdraw(self, request: Withdrawal) -> None:
        """Sets the funds apart. Raises LocalRefusal WITHDRAWAL (the id was used) and BALANCE."""
        if request.withdrawal_id in self.withdrawals:
            raise LocalRefusal(Code.WITHDRAWAL, "this withdrawal id was used before")
        if request.amount <= 0:
            raise LocalRefusal(Code.WITHDRAWAL, "a withdrawal is above zero")
        self.ledger.withdrawal_debit(request.user, request.token, request.amount)
        self.withdrawals[request.withdrawal_id] = request

    def withdrawal_done(self, withdrawal_id: Hash) -> None:
        request = self.withdrawals[withdrawal_id]
        if request.status == "pending":
            self.ledger.withdrawal_done(request.user, request.token, request.amount)
            request.status = "done"

    def withdrawal_failed(self, withdrawal_id: Hash) -> None:
        request = self.withdrawals[withdrawal_id]
        if request.status == "pending":
            self.ledger.withdrawal_failed(request.user, request.token, request.amount)
            request.status = "failed"

    # -- after every action

    def _finish(self, now_ms: int) -> list[Effect]:
        return [*flush_all(list(self.desks.values()), now_ms), *self._changes()]

    def _changes(self) -> list[Effect]:
        effects: list[Effect] = []
        for market_id, book in self.books.items():
            changes = book.drain_changes()
            if changes:
                self.book_seq[market_id] += 1
                rows = tuple((int(side), price, lots) for side, price, lots in changes)
                effects.append(BookChanged(market_id, self.book_seq[market_id], rows))
        return effects

    def check(self) -> None:
        """Law C here: the ledger balances, and its net with peers is the channels'. Raises InvariantBroken."""
        self.ledger.check()
        net: dict[Address, int] = {}
        for desk in self.desks.values():
            for token, value in self.channel_net(desk).items():
                net[token] = net.get(token, 0) + value
        for token in {*net, *self.ledger.tokens()}:
            booked, owed = self.ledger.channel_net(token), net.get(token, 0)
            if booked != owed:
                raise InvariantBroken(
                    Code.CONSERVATION,
                    f"the ledger owes peers {booked} of {format_address(token)}, the channels say {owed}",
                )

    def channel_net(self, desk: Desk) -> dict[Address, int]:
        """What this broker owes the peer less what the peer owes it, per token, with payouts counted."""
        if desk.channel.phase is Phase.SETTLED:
            return {}
        sign = -1 if desk.me == 0 else 1  # a channel's net is what B owes A
        net = {token: sign * value for token, value in desk.channel.view.net.items()}
        for (token, outgoing), amount in self.payouts.get(desk.channel_id, {}).items():
            net[token] = net.get(token, 0) + (-amount if outgoing else amount)
        return net

    # -- payouts of a final state

    def paid_out(self, desk: Desk, token: Address, amount: int, *, outgoing: bool) -> None:
        """The chain shows, final, that one custody has paid the other; the channel is settled when nothing is owed."""
        if outgoing:
            self.ledger.channel_paid_out(token, amount)
        else:
            self.ledger.channel_paid_in(token, amount)
        payouts = self.payouts.setdefault(desk.channel_id, {})
        payouts[(token, outgoing)] = payouts.get((token, outgoing), 0) + amount
        self.settle_if_paid(desk)

    def settle_if_paid(self, desk: Desk) -> None:
        """A final channel that is concluded on chain and owes nothing any more is settled."""
        if desk.channel.phase is Phase.FINAL and not any(self.channel_net(desk).values()):
            desk.settle()


def _order_id(party: Party) -> Hash:
    return party.signed.order_id if isinstance(party, UserOrder) else party.call.authority.order_id


def _open_order(desk: Desk, call: CreateOrder) -> OpenOrder:
    return OpenOrder(
        1 - desk.me, call.ref, call.market, call.side, call.price_ticks, call.lots, call.authority.order_id
    )


def _peer_book_id(desk: Desk, ref: int) -> OrderId:
    """Unique for ever: the channel's id mixed with the reference."""
    tail = int.from_bytes(desk.channel_id[24:], "big") ^ ref
    return OrderId(desk.channel_id[:24] + tail.to_bytes(8, "big"))
