"""The order book: one pure price-time-priority matcher per market. DESIGN section 8."""

from broker.clob.book import Fill, OrderBook, OrderId, Placement, Resting, Side

__all__ = ["Fill", "OrderBook", "OrderId", "Placement", "Resting", "Side"]
