"""One channel at work: this node's side of the protocol, between the pure transition and the exchange.

The desk makes this node's entries (dense sequence, hash chain, signature), signs proposals, countersignatures and
refusals, and keeps what must be sent again after a reconnect. It does no I/O: it returns effects, and the shell
releases them after the commit. Signatures are deterministic (RFC 6979), so replaying the node's actions makes the same
bytes. DESIGN sections 4 and 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker.effects import (
    Cosigned,
    Effect,
    Journalled,
    SendCountersignature,
    SendEntry,
    SendProposal,
    SendRefusal,
    Signed,
)
from channel import transition
from channel.calls import MAX_BATCH, Call, parse_calls
from channel.entry import Entry, entry_digest
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from channel.exposure import is_covered
from channel.journal import StateRecord
from channel.locks import SignedLock
from channel.position import MAX_OPEN_ORDERS, OpenOrder, fill_value_of, shift_worst
from channel.signing import Signer
from channel.state import FixedPart
from channel.strictjson import dumps
from channel.terms import Terms
from channel.transition import Channel, Countersign, Phase, Proposal, Run
from channel.typed import REFUSAL, Domain, node_domain
from channel.units import Address, ChannelId, Hash

MAX_BATCH_TEXT = 64 * 1024  # and one call more fits a body
MAX_BURNT_IN_A_ROW = 64


@dataclass(slots=True)
class _Outstanding:
    """A proposal of ours that nobody has answered, and our signature under it."""

    proposal: Proposal
    signature: bytes


class Desk:
    """See the module docstring. `channel` is replaced, never mutated."""

    def __init__(self, fixed: FixedPart, terms: Terms, signer: Signer) -> None:
        self._signer = signer
        self.channel: Channel = transition.open_channel(fixed, terms, signer.address)
        self.peer: Address = fixed.participants[1 - self.channel.me]
        self.domain: Domain = node_domain(fixed.chain_id, fixed.app_definition)
        self.outstanding: _Outstanding | None = None
        self.last_cosigned: tuple[Proposal, tuple[bytes, bytes]] | None = None
        self.last_refusal: SendRefusal | None = None
        self.signed_locks: list[SignedLock | None] = [None, None]
        self.opening_shown = False
        """XLN has turn 1: it holds the locks. Before that they may yet become void, and nothing is risked on them."""
        self._calls: list[str] = []
        self._calls_bytes = 0

    @property
    def channel_id(self) -> ChannelId:
        return self.channel.fixed.channel_id

    @property
    def me(self) -> int:
        return self.channel.me

    @property
    def is_trading(self) -> bool:
        return self.channel.phase is Phase.ACTIVE and self.opening_shown

    @property
    def phase_name(self) -> str:
        """The phase as people are told it: a channel is active once it trades."""
        waits = self.channel.phase is Phase.ACTIVE and not self.opening_shown
        return (Phase.OPENING if waits else self.channel.phase).value

    @property
    def takes_entries(self) -> bool:
        return self.channel.phase in (Phase.ACTIVE, Phase.CLOSING)

    # -- opening

    def lock_signed(self, lock: SignedLock) -> list[Effect]:
        """XLN signed a lock (verified by the shell). The first sight of it goes into the journal."""
        index = self.channel.fixed.index_of(lock.lock.owner)
        if lock.lock.terms_hash != self.channel.terms.terms_hash or lock.lock.channel_id != self.channel_id:
            raise PeerFault(Code.LOCK_CHANNEL, "the lock is for another channel or other terms")
        self.channel = transition.lock_signed(self.channel, index, lock.lock.token, lock.lock.amount)
        if self.signed_locks[index] is not None:
            return []
        self.signed_locks[index] = lock
        return [Journalled(self.channel_id, lock)]

    def lock_confirmed(self, owner: Address, token: Address, amount: int, terms_hash: Hash) -> None:
        index = self.channel.fixed.index_of(owner)
        self.channel = transition.lock_confirmed(self.channel, index, token, amount, terms_hash)

    # -- entries

    def add_call(
        self, method: str, params: dict[str, object], now_ms: int, *, answered: bool
    ) -> tuple[int, list[Effect]]:
        """Adds a call to the entry that `flush` will sign. Returns its reference and what had to be flushed before."""
        effects: list[Effect] = []
        if len(self._calls) == MAX_BATCH or self._calls_bytes > MAX_BATCH_TEXT:
            effects = self.flush(now_ms)
        ref = (self.channel.view.last_seq[self.me] + 1) * MAX_BATCH + len(self._calls)
        call: dict[str, object] = {"jsonrpc": "2.0", "method": method, "params": params}
        if answered:
            call["id"] = ref
        text = dumps(call)
        self._calls.append(text)
        self._calls_bytes += len(text)
        return ref, effects

    def flush(self, now_ms: int) -> list[Effect]:
        """Signs the calls that were added as one entry and takes it into the view."""
        if not self._calls:
            return []
        body = self._calls[0] if len(self._calls) == 1 else "[" + ",".join(self._calls) + "]"
        self._calls, self._calls_bytes = [], 0
        view = self.channel.view
        seq, prev = view.last_seq[self.me] + 1, view.last_hash[self.me]
        digest = entry_digest(
            self.domain, to=self.peer, channel_id=self.channel_id, seq=seq, prev=prev, ts_ms=now_ms, body=body
        )
        entry = Entry(
            sender=self._signer.address,
            to=self.peer,
            channel_id=self.channel_id,
            seq=seq,
            prev=prev,
            ts_ms=now_ms,
            body=body,
            signature=self._signer.sign(digest),
            entry_hash=digest,
        )
        calls = parse_calls(entry, self.channel.fixed, self.channel.terms, check_signatures=False)
        try:
            self.channel = transition.add_entry(self.channel, entry, calls)
        except XlnError as error:
            raise InvariantBroken(Code.CONSERVATION, f"this node made an entry that does not apply: {error}") from error
        return [Journalled(self.channel_id, entry), SendEntry(self.channel_id, entry)]

    def receive_entry(self, entry: Entry) -> tuple[tuple[Call, ...], list[Effect]]:
        """Takes the peer's next entry (signature verified, sequence next). Raises PeerFault, and nothing changed."""
        calls = parse_calls(entry, self.channel.fixed, self.channel.terms)
        self.channel = transition.add_entry(self.channel, entry, calls)
        return calls, [Journalled(self.channel_id, entry)]

    # -- admission

    def objection(self, order: OpenOrder, *, counted: bool, extra_quote: int = 0) -> tuple[Code, str] | None:
        """Why `order` must not be taken on, or None: phase, what is open or waits, cover of both, the limit U.

        `counted`: the view has the order already (the peer's entry brought it). `extra_quote`: quote base units that
        its fills would move above its limit (a sell that is filled at better prices).
        """
        channel, terms = self.channel, self.channel.terms
        if not self.is_trading:
            return Code.CHANNEL_PHASE, f"the channel is {self.phase_name}"
        view, quote_token = channel.view, order.market.quote
        matchable = view.open_quote.get(quote_token, 0) + extra_quote
        if not counted and view.open_counts[order.owner] >= MAX_OPEN_ORDERS:
            return Code.ORDER_LIMIT, f"{MAX_OPEN_ORDERS} orders of this broker are open at the peer"
        if not counted and transition.is_full(channel):
            return Code.BUSY, "too many entries wait for the peer's signature"
        if not counted:
            view = replace(view, worst=shift_worst(view.worst, order, order.left_lots))
            matchable += order.market.quote_amount(order.price_ticks, order.left_lots)
        if extra_quote:
            key = (1 - order.owner, order.market.quote)
            view = replace(view, worst=view.worst.set(key, view.worst.get(key, 0) + extra_quote))
        for debtor in (0, 1):
            if not is_covered(view, debtor, channel.locks[debtor], terms):
                whose = "this broker" if debtor == self.me else "the peer"
                return Code.ORDER_UNCOVERED, f"{whose} would owe more than is locked for it"
        # Whatever rests can be matched in one moment: all open orders of both count, on either book.
        others = sum(fill_value_of(t, quote, terms) for t, quote in view.open_quote.items() if t != quote_token)
        value = channel.unsettled_value + others + fill_value_of(quote_token, matchable, terms)
        if value > terms.unsettled_limit:
            return Code.ORDER_LIMIT, "what could be matched and not co-signed would exceed the limit of the terms"
        return None

    # -- turns

    def propose(self, now_ms: int) -> list[Effect]:
        """Signs the next proposal if this node is the mover and there is something to say."""
        channel, proposal = transition.propose(self.channel, now_ms)
        if proposal is None:
            return []
        last = channel.cosigned.state.turn if channel.cosigned else -1
        if channel.next_turn - last > MAX_BURNT_IN_A_ROW:
            raise LocalRefusal(Code.CHANNEL_TURN, f"{MAX_BURNT_IN_A_ROW} turns in a row were refused")
        self.channel = channel
        signature = self._signer.sign(proposal.state.digest)
        self.outstanding = _Outstanding(proposal, signature)
        return [self._signed(proposal), SendProposal(self.channel_id, proposal, signature)]

    def receive_proposal(
        self, *, turn: int, is_final: bool, time_ms: int, runs: tuple[Run, ...], state_hash: Hash, signature: bytes
    ) -> list[Effect]:
        """The peer signed `state_hash` (verified). Raises PeerFault (nothing burnt) and InvariantBroken FORK."""
        if self.last_refusal is not None and (turn, state_hash) == (
            self.last_refusal.turn,
            self.last_refusal.state_hash,
        ):
            return [self.last_refusal]
        self.channel, answer = transition.receive_proposal(
            self.channel, turn=turn, is_final=is_final, time_ms=time_ms, runs=runs, state_hash=state_hash
        )
        if isinstance(answer, Countersign):
            if answer.repeated:
                return self._repeat_countersignature()
            mine = self._signer.sign(answer.proposal.state.digest)
            effects: list[Effect] = [self._signed(answer.proposal)]
            effects += self._cosigned(answer.proposal, self._pair(mine, signature))
            effects.append(SendCountersignature(self.channel_id, turn, state_hash, mine))
            return effects
        digest = self.domain.digest(REFUSAL.hash(self.channel_id, turn, state_hash, answer.code.label))
        self.last_refusal = SendRefusal(
            self.channel_id, turn, state_hash, answer.code, answer.message, self._signer.sign(digest)
        )
        return [self.last_refusal]

    def receive_countersignature(self, turn: int, state_hash: Hash, signature: bytes) -> list[Effect]:
        """The peer countersigned (verified). Raises PeerFault CHANNEL_TURN for what was not proposed."""
        outstanding = self.outstanding
        self.channel, proposal = transition.receive_countersignature(self.channel, turn, state_hash)
        if proposal is None or outstanding is None:
            return []
        self.outstanding = None
        return self._cosigned(proposal, self._pair(outstanding.signature, signature))

    def receive_refusal(self, turn: int, state_hash: Hash) -> list[Effect]:
        self.channel, burnt = transition.receive_refusal(self.channel, turn, state_hash)
        if burnt:
            self.outstanding = None
        return []

    def resend(self, peer_turn: int | None = None) -> list[Effect]:
        """What is outstanding, in the same bytes; first the countersignature that a peer still at `peer_turn` lacks."""
        effects: list[Effect] = []
        if self.channel.phase is Phase.FROZEN:
            return effects
        cosigned = self.channel.cosigned
        if peer_turn is not None and cosigned is not None and peer_turn < cosigned.state.turn:
            effects = self._repeat_countersignature()
        if self.outstanding is not None:
            effects.append(SendProposal(self.channel_id, self.outstanding.proposal, self.outstanding.signature))
        return effects

    def request_close(self) -> None:
        self.channel = transition.request_close(self.channel)

    def freeze(self, code: Code, message: str) -> None:
        self.channel = transition.freeze(self.channel, code, message)

    def settle(self) -> None:
        self.channel = transition.settle(self.channel)

    def _signed(self, proposal: Proposal) -> Signed:
        state = proposal.state
        return Signed(self.channel_id, state.turn, state.state_hash, state.is_final)

    def _cosigned(self, proposal: Proposal, signatures: tuple[bytes, bytes]) -> list[Effect]:
        self.last_cosigned = (proposal, signatures)
        state = proposal.state
        record = StateRecord(
            turn=state.turn,
            is_final=state.is_final,
            time_ms=proposal.time_ms,
            runs=proposal.runs,
            state_hash=state.state_hash,
            signatures=signatures,
        )
        return [Journalled(self.channel_id, record), Cosigned(self.channel_id, proposal, signatures)]

    def _repeat_countersignature(self) -> list[Effect]:
        assert self.last_cosigned is not None
        proposal, signatures = self.last_cosigned
        return [
            SendCountersignature(self.channel_id, proposal.state.turn, proposal.state.state_hash, signatures[self.me])
        ]

    def _pair(self, mine: bytes, theirs: bytes) -> tuple[bytes, bytes]:
        return (mine, theirs) if self.me == 0 else (theirs, mine)


def flush_all(desks: Sequence[Desk], now_ms: int) -> list[Effect]:
    return [effect for desk in desks for effect in desk.flush(now_ms)]
