"""What the trader API shows, as JSON: amounts as decimal text with the base units beside, prices as decimal and ticks.

Pure views of the exchange; nothing here changes it. A quantity `x` of an order or level is shown as `x` (decimal text,
whole tokens), `xUnits` (base units, text) and `xLots`; a price as `price` (whole quote per whole base) and `ticks`.
DESIGN sections 3 and 8.
"""

from collections.abc import Mapping
from typing import Any

from broker.config import BrokerConfig
from broker.exchange import Exchange, UserOrder, Withdrawal
from broker.ledger import Balance
from channel.errors import Code, PeerFault
from channel.orders import OrderType
from channel.terms import SIDES, Market, tick_scale
from channel.units import Address, ChannelId, MarketId, format_address, format_amount, format_hex, parse_hash

Json = dict[str, Any]


class Views:
    """Views of one exchange, with the names and decimals of the configuration (and of channels' terms)."""

    def __init__(self, config: BrokerConfig, exchange: Exchange) -> None:
        self._config = config
        self._exchange = exchange

    # -- names

    def token(self, address: Address) -> tuple[str, int]:
        """(symbol, decimals); of a token that nobody has named, its address and 0."""
        known = self._config.token(address)
        if known is not None:
            return known.symbol, known.decimals
        for desk in self._exchange.desks.values():
            for token in desk.channel.terms.tokens:
                if token.address == address:
                    return token.symbol, token.decimals
        return format_address(address), 0

    def name(self, market: Market) -> str:
        return f"{self.token(market.base)[0]}/{self.token(market.quote)[0]}".lower()

    def own_market(self, text: str) -> Market:
        """A market of this broker by name or id. Raises PeerFault ORDER_MARKET."""
        for market in self._exchange.markets.values():
            if text.lower() in (self.name(market), format_hex(market.market_id)):
                return market
        names = ", ".join(self.name(m) for m in self._exchange.markets.values()) or "none"
        raise PeerFault(Code.ORDER_MARKET, f"there is no market {text[:80]!r} here; this broker has: {names}")

    def market_by_id(self, market_id: MarketId) -> Market | None:
        """A market of this broker or of a peer."""
        found = self._exchange.markets.get(market_id)
        if found is not None:
            return found
        return next((m for m, _, _ in self.peer_markets() if m.market_id == market_id), None)

    def peer_markets(self) -> list[tuple[Market, ChannelId, Address]]:
        """(market, channel, holder) of the peers that can be traded with now."""
        return [
            (market, desk.channel_id, desk.peer)
            for desk in self._exchange.desks.values()
            if desk.is_trading
            for market in desk.channel.terms.markets
            if market.holder == desk.peer
        ]

    # -- numbers

    def price(self, market: Market, ticks: int) -> str:
        scale, digits = tick_scale(market, self.token(market.base)[1], self.token(market.quote)[1])
        return format_amount(ticks * scale, digits)

    def lots(self, market: Market, lots: int, name: str = "amount") -> Json:
        units = market.base_amount(lots)
        short = "lots" if name == "amount" else f"{name}Lots"
        return {
            name: format_amount(units, self.token(market.base)[1]),
            "units" if name == "amount" else f"{name}Units": str(units),
            short: lots,
        }

    def amount(self, token: Address, units: int, name: str = "amount") -> Json:
        return {name: format_amount(units, self.token(token)[1]), f"{name}Units": str(units)}

    # -- things

    def market(self, market: Market) -> Json:
        base, quote = self.token(market.base), self.token(market.quote)
        return {
            "id": format_hex(market.market_id),
            "name": self.name(market),
            "holder": format_address(market.holder),
            "base": base[0],
            "quote": quote[0],
            "baseToken": format_address(market.base),
            "quoteToken": format_address(market.quote),
            "baseDecimals": base[1],
            "quoteDecimals": quote[1],
            "tick": self.price(market, 1),
            "lot": format_amount(market.lot_base, base[1]),
            "tickQuote": str(market.tick_quote),
            "lotBase": str(market.lot_base),
        }

    def peer_market(self, market: Market, channel_id: ChannelId, peer: Address) -> Json:
        return {**self.market(market), "peer": format_address(peer), "channel": format_hex(channel_id)}

    def level(self, market: Market, price_ticks: int, lots: int, local_lots: int) -> Json:
        return {
            "price": self.price(market, price_ticks),
            "ticks": price_ticks,
            **self.lots(market, lots),
            "local": format_amount(market.base_amount(local_lots), self.token(market.base)[1]),
            "localLots": local_lots,
        }

    def trade(self, raw: Mapping[str, Any]) -> Json:
        """A public trade of the node, with decimals."""
        shown: Json = {
            "market": raw["market"], "side": raw["side"], "ticks": raw["price"], "lots": raw["amount"], "t": raw["t"],
            "remote": raw["remote"],
        }  # fmt: skip
        market = self.market_by_id(MarketId(parse_hash(raw["market"], "market")))
        if market is not None:  # a peer's market goes with its channel; its trades stay
            shown |= {
                "name": self.name(market),
                "price": self.price(market, raw["price"]),
                **self.lots(market, raw["amount"]),
            }
        return shown

    def order(self, live: UserOrder) -> Json:
        order, market = live.signed.order, live.market
        amounts = {"amount": order.amount_lots, "filled": live.filled_lots, "open": live.local_lots}
        amounts |= {"remote": live.remote_lots, "cancelled": live.cancelled_lots}
        shown: Json = {
            "id": format_hex(live.signed.order_id),
            "owner": format_address(order.owner),
            "market": format_hex(order.market_id),
            "name": self.name(market),
            "side": SIDES[order.side],
            "type": order.order_type.name.lower(),
            "tif": order.time_in_force.name,
            "status": live.status,
            "price": None if order.order_type is OrderType.MARKET else self.price(market, order.price_ticks),
            "ticks": order.price_ticks,
        }
        for name, lots in amounts.items():
            shown |= self.lots(market, lots, name)
        shown |= self.amount(market.quote, live.filled_quote, "filledQuote")
        return shown | {
            "until": order.valid_until_ms,
            "nonce": str(order.nonce),
            "replaces": format_hex(order.replaces),
        }

    def balance(self, token: Address, balance: Balance) -> Json:
        shown: Json = {"token": format_address(token), "symbol": self.token(token)[0]}
        for name in ("deposited", "free", "locked", "withdrawing", "total"):
            shown |= self.amount(token, getattr(balance, name), name)
        return shown

    def withdrawal(self, request: Withdrawal) -> Json:
        return {
            "id": format_hex(request.withdrawal_id),
            "user": format_address(request.user),
            "token": format_address(request.token),
            "symbol": self.token(request.token)[0],
            **self.amount(request.token, request.amount),
            "to": format_address(request.to),
            "deadline": request.deadline_s,
            "status": request.status,
        }
