"""What can go wrong, and the stable codes that say so.

    XlnError
     +-- PeerFault         the other side (broker, user, file) sent something wrong; it is told so, nothing changes
     +-- LocalRefusal      the request is well formed, this node will not do it now; nothing changes
     +-- InvariantBroken   value would not be conserved, or a signature fork: the channel stops, evidence is kept

Every code is a symbolic name, which is what programs match on, and a JSON-RPC number. Precedence, when several
apply, is the order of `Code` below: frame, then session, then envelope, then method and parameters, then the order or
state itself, then local policy. House rule 5; DESIGN section 5.
"""

from enum import Enum


class Code(Enum):
    """Stable error codes: (JSON-RPC number, symbolic name). Names never change; new ones are added."""

    # frame
    PARSE = (-32700, "json.parse")
    DUPLICATE_KEY = (-32701, "json.duplicate_key")
    NUMBER = (-32702, "json.number")
    FRAME_TOO_LARGE = (-32703, "frame.too_large")
    BATCH_TOO_LARGE = (-32704, "batch.too_large")
    # session
    SESSION_HELLO = (-32100, "session.hello")
    SESSION_VERSION = (-32101, "session.version")
    SESSION_UNKNOWN_PEER = (-32102, "session.unknown_peer")
    SESSION_SEALED = (-32103, "session.sealed")
    RATE_LIMIT = (-32104, "rate.limit")
    # envelope
    ENTRY_SIGNATURE = (-32110, "entry.signature")
    ENTRY_RECIPIENT = (-32111, "entry.recipient")
    ENTRY_EQUIVOCATION = (-32112, "entry.equivocation")
    ENTRY_GAP = (-32113, "entry.gap")
    ENTRY_PREV = (-32114, "entry.prev")
    ENTRY_INVALID = (-32115, "entry.invalid")
    # method and parameters
    REQUEST = (-32600, "rpc.request")
    METHOD = (-32601, "rpc.method")
    PARAMS = (-32602, "rpc.params")
    INTERNAL = (-32603, "internal")
    # signatures of people and states
    SIGNATURE = (-32120, "signature.invalid")
    SIGNATURE_HIGH_S = (-32121, "signature.high_s")
    SIGNATURE_V = (-32122, "signature.v")
    SIGNATURE_SIGNER = (-32123, "signature.signer")
    # values
    AMOUNT = (-32130, "amount.invalid")
    ADDRESS = (-32131, "address.invalid")
    ENCODING = (-32132, "encoding.invalid")
    OUTCOME_MISMATCH = (-32133, "state.outcome")
    # orders
    ORDER_SIGNATURE = (-32140, "order.signature")
    ORDER_REPLAYED = (-32141, "order.replayed")
    ORDER_MARKET = (-32142, "order.market")
    ORDER_TICK = (-32143, "order.tick")
    ORDER_AMOUNT = (-32144, "order.amount")
    ORDER_EXPIRED = (-32145, "order.expired")
    ORDER_BALANCE = (-32146, "order.balance")
    ORDER_UNKNOWN = (-32147, "order.unknown")
    ORDER_OWNER = (-32148, "order.owner")
    ORDER_UNCOVERED = (-32149, "order.uncovered")
    ORDER_LIMIT = (-32150, "order.unsettled_limit")
    ORDER_TYPE = (-32151, "order.type")
    BOOK_GAP = (-32152, "book.gap")
    # channel
    CHANNEL_UNKNOWN = (-32160, "channel.unknown")
    CHANNEL_PHASE = (-32161, "channel.phase")
    CHANNEL_TERMS = (-32162, "channel.terms")
    CHANNEL_MOVER = (-32163, "channel.mover")
    CHANNEL_TURN = (-32164, "channel.turn")
    CHANNEL_STATE = (-32165, "channel.state")
    CHANNEL_ENTRIES = (-32166, "channel.entries")
    CHANNEL_UNCOVERED = (-32167, "channel.uncovered")
    CHANNEL_FINAL = (-32168, "channel.final")
    CHANNEL_FROZEN = (-32169, "channel.frozen")
    CHANNEL_LOST_STATE = (-32170, "channel.lost_state")
    CHANNEL_LOCK = (-32171, "channel.lock")
    # collateral
    LOCK_CHANNEL = (-32180, "lock.channel")
    LOCK_AMOUNT = (-32181, "lock.amount")
    LOCK_EXISTS = (-32182, "lock.exists")
    LOCK_TERMS = (-32183, "lock.terms")
    BROKER_UNKNOWN = (-32184, "broker.unknown")
    # attestation and payouts
    ATTEST_INCOMPLETE = (-32190, "attest.incomplete")
    ATTEST_JOURNAL = (-32191, "attest.journal")
    ATTEST_ORDER = (-32192, "attest.order")
    PAYOUT_UNATTESTED = (-32193, "payout.unattested")
    # withdrawals and balances
    BALANCE = (-32200, "balance.insufficient")
    WITHDRAWAL = (-32201, "withdrawal.invalid")
    AUTH = (-32202, "auth.invalid")
    # the node itself
    CHAIN = (-32210, "chain.unavailable")
    CHAIN_STALE = (-32211, "chain.stale")
    CHAIN_REVERTED = (-32212, "chain.reverted")
    PEER_UNAVAILABLE = (-32213, "peer.unavailable")
    TIMEOUT = (-32214, "timeout")
    STORAGE = (-32215, "storage.failed")
    CONFIG = (-32216, "config.invalid")
    KEYFILE = (-32217, "keyfile.invalid")
    BUSY = (-32218, "node.busy")
    CHAIN_REORG = (-32219, "chain.reorg")
    # broken invariants
    CONSERVATION = (-32230, "invariant.conservation")
    FORK = (-32231, "invariant.fork")

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def label(self) -> str:
        return self.value[1]


class XlnError(Exception):
    """A failure with a stable code, a sentence that says what is wrong and what would be right, and plain data."""

    def __init__(self, code: Code, message: str, **data: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return f"{self.code.label}: {self.message}"


class PeerFault(XlnError):
    """What came in is wrong. The sender is told; nothing changed."""


class LocalRefusal(XlnError):
    """What came in is well formed, but this node will not do it now. Nothing changed."""


class InvariantBroken(XlnError):
    """Value would not be conserved, or a signature would fork. The channel stops and the evidence is kept."""
