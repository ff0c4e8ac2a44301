"""A replica of one book of a peer: its snapshot, then its increments in order. Pure; what comes in is untrusted.

Invariants: it has a market, a sequence number and at most MAX_LEVELS levels a side, the best ones; every level has
lots; the best bid is below the best ask. A level's lots are replaced, never added to, so a level that is listed is
right even where worse ones were left out. After an error the replica is unchanged, and whoever holds it subscribes
anew. DESIGN section 5 (orderbook.subscribe, orderbook.increment).
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NoReturn, Self

from channel.errors import Code, PeerFault
from channel.orders import MAX_LOTS, MAX_TICKS
from channel.strictjson import Fields
from channel.terms import SIDES
from channel.units import MarketId

MAX_LEVELS = 1_000  # a side; as many as a snapshot has
MAX_CHANGES = 4_096  # in one increment
MAX_SEQ = 2**53 - 1

Level = tuple[int, int]  # (price in ticks, lots)


def _fail(message: str) -> NoReturn:
    raise PeerFault(Code.PARAMS, message)


class _Half:
    """One side. A key is the negated price for bids and the price for asks: the best is the lowest."""

    __slots__ = ("keys", "lots", "sign")

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.keys: list[int] = []
        self.lots: dict[int, int] = {}

    def set(self, price_ticks: int, lots: int) -> None:
        key = self.sign * price_ticks
        if lots == 0:
            if self.lots.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]
            return
        if key not in self.lots:
            insort(self.keys, key)
        self.lots[key] = lots

    def trim(self) -> None:
        for key in self.keys[MAX_LEVELS:]:
            del self.lots[key]
        del self.keys[MAX_LEVELS:]

    def best(self) -> int | None:
        return self.sign * self.keys[0] if self.keys else None


class PeerBook:
    """See the module docstring. Prices in ticks and amounts in lots of the peer's market."""

    __slots__ = ("_halves", "market_id", "seq")

    def __init__(self, market_id: MarketId, seq: int = 0) -> None:
        self.market_id = market_id
        self.seq = seq
        self._halves = (_Half(-1), _Half(1))

    @classmethod
    def from_snapshot(cls, raw: object, market_id: MarketId | None = None) -> Self:
        """Parses {"market", "seq", "bids": [[price, lots], …], "asks"}. Raises PeerFault PARAMS, ENCODING.

        `market_id`: the market that was asked for, if it must be that one.
        """
        fields = Fields(raw, "a book snapshot")
        market = MarketId(fields.hash("market"))
        if market_id is not None and market != market_id:
            _fail("the snapshot is of another market than was asked for")
        book = cls(market, fields.integer("seq", 0, MAX_SEQ))
        for half, name in zip(book._halves, ("bids", "asks"), strict=True):
            last: int | None = None
            for row in fields.list(name, MAX_LEVELS):
                price, lots = _level(row)
                if last is not None and half.sign * price <= half.sign * last:
                    _fail(f"{name} of a book snapshot come best first, each price once")
                half.keys.append(half.sign * price)
                half.lots[half.sign * price] = lots
                last = price
        fields.done()
        _require_uncrossed(book._halves)
        return book

    def apply_increment(self, seq: object, changes: object) -> bool:
        """Takes the next increment: [[side "b" or "s", price in ticks, lots now], …]; lots 0 removes the level.

        Returns False for one that is known already (it is ignored). Raises PeerFault BOOK_GAP when one before it is
        missing, PARAMS when it is malformed or leaves the book crossed; then nothing has changed.
        """
        if type(seq) is not int or not 0 < seq <= MAX_SEQ:
            _fail("seq of an increment must be a whole number above 0")
        if seq <= self.seq:
            return False
        if seq != self.seq + 1:
            raise PeerFault(
                Code.BOOK_GAP, f"increment {seq} follows {self.seq}; subscribe again", seq=seq, last=self.seq
            )
        if not isinstance(changes, (list, tuple)) or not 0 < len(changes) <= MAX_CHANGES:
            _fail(f"changes of an increment is a list of 1 to {MAX_CHANGES}")
        rows = [_change(row) for row in changes]
        undo = [(side, price, self.level(side, price)) for side, price, _ in rows]
        for side, price, lots in rows:
            self._halves[side].set(price, lots)
        try:
            _require_uncrossed(self._halves)
        except PeerFault:
            for side, price, lots in reversed(undo):
                self._halves[side].set(price, lots)
            raise
        for half in self._halves:
            half.trim()
        self.seq = seq
        return True

    def level(self, side: int, price_ticks: int) -> int:
        """Lots at a price; 0 if none."""
        half = self._halves[side]
        return half.lots.get(half.sign * price_ticks, 0)

    def best(self, side: int) -> int | None:
        return self._halves[side].best()

    def levels(self, side: int) -> Iterator[Level]:
        """(price in ticks, lots), best first. The book must not change meanwhile."""
        half = self._halves[side]
        return ((half.sign * key, half.lots[key]) for key in half.keys)

    def depth(self, side: int, n: int) -> tuple[Level, ...]:
        """The best `n` levels of a side (0 bids, 1 asks), best first."""
        half = self._halves[side]
        return tuple((half.sign * key, half.lots[key]) for key in half.keys[: max(n, 0)])


def _require_uncrossed(halves: tuple[_Half, _Half]) -> None:
    bid, ask = halves[0].best(), halves[1].best()
    if bid is not None and ask is not None and bid >= ask:
        _fail(f"a book whose best bid is {bid} and best ask {ask} is crossed")


def _level(row: object) -> Level:
    if not isinstance(row, (list, tuple)) or len(row) != 2:
        _fail("a level is [price in ticks, lots]")
    price, lots = row
    if type(price) is not int or not 0 < price <= MAX_TICKS or type(lots) is not int or not 0 < lots <= MAX_LOTS:
        _fail("price and lots of a level are whole numbers above 0")
    return price, lots


def _change(row: object) -> tuple[int, int, int]:
    if not isinstance(row, (list, tuple)) or len(row) != 3 or row[0] not in SIDES:
        _fail('a change is ["b" or "s", price in ticks, lots]')
    side, price, lots = row
    if type(price) is not int or not 0 < price <= MAX_TICKS or type(lots) is not int or not 0 <= lots <= MAX_LOTS:
        _fail("price of a change is above 0, its lots are at least 0")
    return SIDES.index(side), price, lots
