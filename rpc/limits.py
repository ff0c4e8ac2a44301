"""What a peer may use of this node, and the token bucket that meters it. Pure: the time is an argument.

Per connection, memory is bounded by about inbox_bytes + outbox_bytes + 6 frames; in `Limits()` that is 14 MiB, times
`connections`. Source: DESIGN section 5 (1 MiB a frame, 512 calls a batch, bounded queues, rate limits per peer).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    frame_bytes: int = 2**20
    """Of one frame's plain text, both ways. Above it the connection closes."""
    batch: int = 512
    """Calls in one batch. Above it the connection closes."""
    inbox_messages: int = 512
    inbox_bytes: int = 4 * 2**20
    """What waits for the owner. Above it nothing more is read, so that the peer's own outbox fills."""
    outbox_messages: int = 8192
    outbox_bytes: int = 4 * 2**20
    """What waits for the network. Above it the connection is cut with BUSY."""
    pending_requests: int = 1024
    """Requests of ours that wait for an answer."""
    messages_per_s: int = 20_000
    """Of one peer, over all its connections; each call in a batch counts. Above it, past the burst, the connection
    closes."""
    burst_messages: int = 40_000
    faults: int = 32
    """Malformed frames that are answered; with the next one the connection closes."""
    connections: int = 128
    """Inbound, sessions that are not yet established included."""
    handshakes: int = 32
    """Inbound connections without an established session."""
    connect_timeout_s: float = 5.0
    hello_timeout_s: float = 5.0
    write_timeout_s: float = 20.0
    """For one frame to be taken by the network."""
    close_timeout_s: float = 2.0
    ping_interval_s: float = 15.0
    ping_timeout_s: float = 15.0


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up. `now` is in seconds and never falls."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, count: int, now: float) -> bool:
        """Takes `count` tokens, or none and says False."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < count:
            return False
        self._tokens -= count
        return True
