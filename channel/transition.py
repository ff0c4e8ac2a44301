"""The life of one channel between two brokers: a pure transition `(channel, input) -> (channel, effect)`.

    phase     entries  turns that may be signed                          leaves it
    --------  -------  ------------------------------------------------  -----------------------------------
    OPENING   none     0 (lock of A), 1 (both locks seen on chain)       turn 1 co-signed -> ACTIVE
    ACTIVE    both     any that lists entries                            close asked by either -> CLOSING
    CLOSING   both     any that lists entries; then the final one        final state co-signed -> FINAL
    FINAL     none     none                                              both payouts on chain -> SETTLED
    SETTLED   none     none
    FROZEN    none     none (evidence is kept; a person or a dispute decides)

What is missing in this table is an error. Rules (DESIGN section 4):

1. One mover per turn: participant (turn mod 2) signs first, the other recomputes and countersigns or refuses.
2. A refusal burns the turn: the next turn is the other side's, on top of the last co-signed state. Turns strictly
   increase, gaps only where a turn was burnt.
3. Entries of both sides flow at any time; the mover lists those it holds that are in no state yet, in its own order.
4. A final state has the outcome of the turn before, no open orders, and lists every entry that is left. Whoever has
   proposed one signs nothing else any more, except final states with the same outcome: the other side may still sign
   the first one, and must not gain by that. Orders that crossed the final proposal are cancelled by their venue, and a
   later final state lists them.
5. Cover is tested on every turn that raises what is owed; `view` (co-signed position and all pending entries) is what
   admission looks at, so that what a proposal reserved stays reserved until a higher turn is co-signed.

Signatures are made and verified in the shells: a proposal that reaches `receive_proposal` is one that its mover signed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from channel.appdata import (
    AppData,
    CollateralLock,
    lock_id_of,
    next_journal_head,
    outcome_of,
)
from channel.calls import Call
from channel.entry import Entry
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault
from channel.exposure import uncovered
from channel.position import Position, apply_entry, balance_updates, open_orders_summary
from channel.state import MAX_TURN, CosignedState, FixedPart, State, VariablePart
from channel.terms import Terms
from channel.units import ZERO_HASH, Address, Hash

MAX_RUNS = 8192
MAX_PENDING = (
    100_000  # entries that are in no state yet; above it the peer's are refused, so that the own ones still fit
)
MAX_PENDING_BYTES = 32 * 1024 * 1024  # of the bodies of both: a peer that signs no turn must not fill the memory


class Phase(Enum):
    OPENING = "opening"
    ACTIVE = "active"
    CLOSING = "closing"
    FINAL = "final"
    SETTLED = "settled"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Run:
    """Entries `first` to `last` (sequence numbers, inclusive) of participant `sender`."""

    sender: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that is in no co-signed state yet."""

    sender: int
    entry: Entry
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A state, the entries that lead to it, and where the journal and the position stand with it."""

    state: State
    runs: tuple[Run, ...]
    position: Position
    journal_head: Hash
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One side's view. `me` is the index of this node; locks are rows that XLN has signed, by participant."""

    fixed: FixedPart
    terms: Terms
    me: int
    phase: Phase = Phase.OPENING
    cosigned: Proposal | None = None
    burnt_turn: int = -1
    view: Position = field(default_factory=Position)
    pending: tuple[Pending, ...] = ()
    pending_bytes: int = 0
    mine: Proposal | None = None
    final_outcome: Hash | None = None  # the outcome of the final state that this node has signed, see rule 4
    locks: tuple[CollateralLock | None, CollateralLock | None] = (None, None)
    locks_confirmed: tuple[bool, bool] = (False, False)
    frozen_by: tuple[Code, str] | None = None

    @property
    def next_turn(self) -> int:
        return max(self.burnt_turn, self.cosigned.state.turn if self.cosigned else -1) + 1

    @property
    def is_mover(self) -> bool:
        return self.next_turn % 2 == self.me

    @property
    def position(self) -> Position:
        """The last co-signed one."""
        return self.cosigned.position if self.cosigned else Position()

    @property
    def unsettled_value(self) -> int:
        """Value matched but not yet co-signed, in the value token; at most U."""
        return self.view.matched_value - self.position.matched_value


@dataclass(frozen=True, slots=True)
class Countersign:
    """The proposal is right: sign it, and it is co-signed. `repeated`: it was before; send the same again."""

    proposal: Proposal
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """The proposal is wrong: sign a refusal, which burns its turn."""

    turn: int
    state_hash: Hash
    code: Code
    message: str


def open_channel(fixed: FixedPart, terms: Terms, me: Address) -> Channel:
    """Raises PeerFault CHANNEL_TERMS when the two do not fit each other or this node is not a participant."""
    for market in terms.markets:
        if market.holder not in fixed.participants or market.chain_id != fixed.chain_id:
            raise PeerFault(Code.CHANNEL_TERMS, "every market is held by a participant, on the channel's chain")
    return Channel(fixed=fixed, terms=terms, me=fixed.index_of(me))


def lock_row(channel: Channel, owner: int, token: Address, amount: int) -> CollateralLock:
    address = channel.fixed.participants[owner]
    return CollateralLock(
        owner=address,
        lock_id=lock_id_of(channel.fixed.channel_id, address),
        chain_id=channel.fixed.chain_id,
        token=token,
        available=0,
        locked=amount,
    )


def lock_signed(channel: Channel, owner: int, token: Address, amount: int) -> Channel:
    """XLN has signed a lock of `amount` for `owner`. Raises PeerFault CHANNEL_LOCK, LOCK_EXISTS."""
    channel.terms.token(token)
    if amount <= 0:
        raise PeerFault(Code.CHANNEL_LOCK, "a lock is above zero")
    row = lock_row(channel, owner, token, amount)
    known = channel.locks[owner]
    if known is not None and known != row:
        raise PeerFault(Code.LOCK_EXISTS, "this owner has another lock for this channel")
    return replace(channel, locks=_with(channel.locks, owner, row))


def lock_confirmed(channel: Channel, owner: int, token: Address, amount: int, terms_hash: Hash) -> Channel:
    """The chain shows a lock with enough confirmations. Raises PeerFault LOCK_TERMS when it is for other terms."""
    if terms_hash != channel.terms.terms_hash:
        raise PeerFault(Code.LOCK_TERMS, "the lock on chain is for other terms")
    channel = lock_signed(channel, owner, token, amount)
    return replace(channel, locks_confirmed=_with(channel.locks_confirmed, owner, True))


def _with(pair: tuple, index: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (value, pair[1]) if index == 0 else (pair[0], value)


def add_entry(channel: Channel, entry: Entry, calls: tuple[Call, ...]) -> Channel:
    """Takes the next entry of either side into the view.

    Raises PeerFault CHANNEL_PHASE before turn 1 and after the final state, ENTRY_* when it does not apply, and
    LocalRefusal CHANNEL_PHASE for an own entry while an own final proposal may be countersigned, BUSY for one of the
    peer's when too much is pending. (An own one that must be made, a notice of a fill, always fits; `is_full` says when
    no other should be.)
    """
    if channel.phase not in (Phase.ACTIVE, Phase.CLOSING):
        raise PeerFault(Code.CHANNEL_PHASE, f"the channel is {channel.phase.value}: it takes no entries")
    mine, peer = channel.mine, 1 - channel.me
    if (
        mine is not None
        and mine.state.is_final
        and entry.sender == channel.fixed.participants[channel.me]
        and channel.view.last_seq[peer] == mine.position.last_seq[peer]  # else the peer must refuse: it has sent more
    ):
        raise LocalRefusal(Code.CHANNEL_PHASE, "a final state is proposed: it would not list this entry")
    if is_full(channel) and entry.sender == channel.fixed.participants[peer]:
        raise LocalRefusal(Code.BUSY, "too many entries wait for a state")
    view = apply_entry(channel.view, entry, calls, channel.fixed, channel.terms)
    pending = Pending(channel.fixed.index_of(entry.sender), entry, calls)
    size = channel.pending_bytes + len(entry.body)
    return replace(channel, view=view, pending=(*channel.pending, pending), pending_bytes=size)


def is_full(channel: Channel) -> bool:
    """Whether so much waits for a state that nothing is added that need not be."""
    return len(channel.pending) >= MAX_PENDING or channel.pending_bytes >= MAX_PENDING_BYTES


def request_close(channel: Channel) -> Channel:
    """Either side wants the final state. Raises LocalRefusal CHANNEL_PHASE."""
    if channel.phase is Phase.ACTIVE:
        return replace(channel, phase=Phase.CLOSING)
    if channel.phase in (Phase.CLOSING, Phase.FINAL):
        return channel
    raise LocalRefusal(Code.CHANNEL_PHASE, f"the channel is {channel.phase.value}; only an active one is closed")


def freeze(channel: Channel, code: Code, message: str) -> Channel:
    """Stops signing for good; what was first said stays.

    After the final state nothing is signed anyway, and its payouts go on: a peer must not be able to stop them.
    """
    if channel.phase in (Phase.FROZEN, Phase.FINAL, Phase.SETTLED):
        return channel
    return replace(channel, phase=Phase.FROZEN, frozen_by=(code, message))


def settle(channel: Channel) -> Channel:
    """Both payouts are final on chain."""
    if channel.phase is not Phase.FINAL:
        raise LocalRefusal(Code.CHANNEL_PHASE, f"the channel is {channel.phase.value}, not final")
    return replace(channel, phase=Phase.SETTLED)


def propose(channel: Channel, now_ms: int) -> tuple[Channel, Proposal | None]:
    """The next proposal, if this node is the mover and there is something to say. Otherwise None."""
    if channel.mine is not None or not channel.is_mover or channel.next_turn > MAX_TURN:
        return channel, None
    match channel.phase:
        case Phase.OPENING:
            if not _opening_ready(channel):
                return channel, None
            proposal = _derive(channel, channel.next_turn, False, _time(channel, now_ms), ())
        case Phase.ACTIVE | Phase.CLOSING:
            final = _final(channel, now_ms) if channel.phase is Phase.CLOSING else None
            if final is not None:
                return replace(channel, mine=final, final_outcome=final.state.outcome_hash), final
            if not channel.pending or channel.final_outcome is not None:
                return channel, None
            runs = _runs(channel.pending)
            proposal = _derive(channel, channel.next_turn, False, _time(channel, now_ms), runs)
            if uncovered(channel.position, proposal.position, channel.locks, channel.terms) is not None:
                return channel, None  # the venue's cancellation of what is not covered is on its way
        case _:
            return channel, None
    return replace(channel, mine=proposal), proposal


def _final(channel: Channel, now_ms: int) -> Proposal | None:
    """The final state, if everything that is left fits one: no open orders, and the outcome of the turn before."""
    runs = _runs(channel.pending)
    if channel.view.orders or channel.view.net != channel.position.net:
        return None
    proposal = _derive(channel, channel.next_turn, True, _time(channel, now_ms), runs)
    return proposal if proposal.position.last_seq == channel.view.last_seq else None


def receive_proposal(
    channel: Channel, *, turn: int, is_final: bool, time_ms: int, runs: tuple[Run, ...], state_hash: Hash
) -> tuple[Channel, Countersign | Refuse]:
    """The mover has signed `state_hash` for `turn`.

    Raises PeerFault, and nothing is burnt: CHANNEL_PHASE, CHANNEL_MOVER, CHANNEL_TURN (a burnt or skipped turn),
    CHANNEL_LOCK (locks not seen on chain yet), CHANNEL_ENTRIES (an entry that has not arrived). Raises InvariantBroken
    FORK when the turn is co-signed already and this is another state.
    """
    if channel.phase is Phase.FROZEN:
        raise PeerFault(Code.CHANNEL_FROZEN, "the channel is frozen: " + (channel.frozen_by or ("", ""))[1])
    if turn % 2 == channel.me:
        raise PeerFault(Code.CHANNEL_MOVER, f"turn {turn} is not yours to propose")
    if channel.cosigned is not None and turn == channel.cosigned.state.turn:
        if state_hash == channel.cosigned.state.state_hash:
            return channel, Countersign(channel.cosigned, repeated=True)
        raise InvariantBroken(Code.FORK, f"two states of turn {turn} are signed by the same broker", turn=turn)
    if channel.phase in (Phase.FINAL, Phase.SETTLED):
        raise PeerFault(Code.CHANNEL_FINAL, "the final state is co-signed")
    if turn != channel.next_turn:
        raise PeerFault(Code.CHANNEL_TURN, f"turn {turn} where {channel.next_turn} is next", next=channel.next_turn)
    if channel.phase is Phase.OPENING and not _opening_ready(channel):
        raise PeerFault(Code.CHANNEL_LOCK, f"turn {turn} waits for the locks it needs")
    refusal: tuple[Code, str] | None
    try:
        proposal = _derive(channel, turn, is_final, time_ms, runs)
        refusal = _objection(channel, proposal, is_final, time_ms, state_hash)
    except PeerFault as fault:
        if fault.code is Code.CHANNEL_ENTRIES:
            raise
        refusal = (fault.code, fault.message)
    if refusal is not None:
        code, message = refusal
        return replace(channel, burnt_turn=turn, mine=None), Refuse(turn, state_hash, code, message)
    return _cosign(channel, proposal), Countersign(proposal)


def _objection(
    channel: Channel, proposal: Proposal, is_final: bool, time_ms: int, state_hash: Hash
) -> tuple[Code, str] | None:
    """Why a proposal that could be recomputed must not be signed, or None."""
    if time_ms < (channel.cosigned.time_ms if channel.cosigned else 0):
        return Code.CHANNEL_STATE, "the time of a state never falls"
    if is_final:
        if channel.phase is not Phase.CLOSING:
            return Code.CHANNEL_FINAL, "nobody has asked to close the channel"
        if proposal.position.last_seq != channel.view.last_seq or channel.view.orders:
            return Code.CHANNEL_FINAL, "a final state has no open orders and no entries after it"
        if proposal.position.net != channel.position.net:
            return Code.CHANNEL_FINAL, "a final state has the outcome of the turn before"
    elif channel.final_outcome is not None:
        return Code.CHANNEL_FINAL, "this node has signed a final state, and signs only final states now"
    elif channel.phase is not Phase.OPENING and not proposal.runs:
        return Code.CHANNEL_ENTRIES, "a turn lists at least one entry"
    if proposal.state.state_hash != state_hash:
        return Code.CHANNEL_STATE, "the entries listed lead to another state"
    if (debtor := uncovered(channel.position, proposal.position, channel.locks, channel.terms)) is not None:
        return Code.CHANNEL_UNCOVERED, f"what participant {debtor} may come to owe is above what is locked for it"
    return None


def receive_countersignature(channel: Channel, turn: int, state_hash: Hash) -> tuple[Channel, Proposal | None]:
    """The other side has signed this node's proposal. None when it is co-signed already, or a later turn is.

    Raises PeerFault CHANNEL_TURN for anything that this node has not proposed.
    """
    cosigned = channel.cosigned
    if cosigned is not None and turn <= cosigned.state.turn:
        if turn < cosigned.state.turn or state_hash == cosigned.state.state_hash:
            return channel, None
        raise PeerFault(Code.CHANNEL_TURN, f"turn {turn} is co-signed with another state hash")
    mine = channel.mine
    if mine is None or (turn, state_hash) != (mine.state.turn, mine.state.state_hash):
        raise PeerFault(Code.CHANNEL_TURN, f"turn {turn} with that state hash was not proposed")
    return _cosign(channel, mine), mine


def receive_refusal(channel: Channel, turn: int, state_hash: Hash) -> tuple[Channel, bool]:
    """The other side has refused this node's proposal: its turn is burnt. False when it was before.

    Raises PeerFault CHANNEL_TURN for anything that is not outstanding.
    """
    if turn <= channel.burnt_turn:
        return channel, False
    mine = channel.mine
    if mine is None or (turn, state_hash) != (mine.state.turn, mine.state.state_hash):
        raise PeerFault(Code.CHANNEL_TURN, f"turn {turn} with that state hash is not outstanding")
    return replace(channel, burnt_turn=turn, mine=None), True


def cosigned_state(proposal: Proposal, signatures: tuple[bytes, bytes]) -> CosignedState:
    return CosignedState(state=proposal.state, signatures=signatures)


def check(channel: Channel) -> None:
    """The invariants that must hold after every transition. Raises InvariantBroken CONSERVATION. DESIGN section 4."""
    last = channel.cosigned
    if last is not None:
        rows = balance_updates(last.position, channel.fixed)
        if outcome_of(rows, _custodies(channel)) != last.state.variable.outcome:
            raise InvariantBroken(Code.CONSERVATION, "the outcome is not the one that the balance updates imply")
    folded = channel.position
    for pending in channel.pending:
        folded = apply_entry(folded, pending.entry, pending.calls, channel.fixed, channel.terms)
    if folded != channel.view:
        raise InvariantBroken(Code.CONSERVATION, "the view is not the fold of the entries")


def _cosign(channel: Channel, proposal: Proposal) -> Channel:
    last_a, last_b = proposal.position.last_seq
    pending = tuple(p for p in channel.pending if p.entry.seq > (last_a if p.sender == 0 else last_b))
    phase = channel.phase
    if phase is Phase.FROZEN:
        pass  # what both have signed is kept as evidence; the channel stays stopped
    elif proposal.state.is_final:
        phase = Phase.FINAL
    elif phase is Phase.OPENING and channel.cosigned is not None:
        phase = Phase.ACTIVE  # the second co-signed state carries both locks, seen on chain
    size = sum(len(p.entry.body) for p in pending)
    return replace(channel, phase=phase, cosigned=proposal, pending=pending, pending_bytes=size, mine=None)


def _opening_ready(channel: Channel) -> bool:
    """The first state carries lock A; every later one of the opening both, each seen on chain."""
    if channel.cosigned is None:
        return channel.locks[0] is not None
    return all(channel.locks_confirmed)


def _time(channel: Channel, now_ms: int) -> int:
    return max(now_ms, channel.cosigned.time_ms if channel.cosigned else 0)


def _runs(pending: Iterable[Pending]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for item in pending:
        if runs and runs[-1].sender == item.sender and len(runs) <= MAX_RUNS:
            runs[-1] = Run(item.sender, runs[-1].first, item.entry.seq)
        elif len(runs) == MAX_RUNS:
            break
        else:
            runs.append(Run(item.sender, item.entry.seq, item.entry.seq))
    return tuple(runs)


def _derive(channel: Channel, turn: int, is_final: bool, time_ms: int, runs: tuple[Run, ...]) -> Proposal:
    """The state that the listed entries lead to from the last co-signed one. Raises what `apply_entry` raises."""
    held = {(p.sender, p.entry.seq): p for p in channel.pending}
    position, hashes = channel.position, []
    for run in runs:
        if run.last - run.first >= len(held):
            raise PeerFault(Code.CHANNEL_ENTRIES, f"entries {run.first} to {run.last} are not all here")
        for seq in range(run.first, run.last + 1):
            item = held.get((run.sender, seq))
            if item is None:
                raise PeerFault(Code.CHANNEL_ENTRIES, f"entry {seq} of participant {run.sender} is not here")
            position = apply_entry(position, item.entry, item.calls, channel.fixed, channel.terms)
            hashes.append(item.entry.entry_hash)
    # The opening's first state has lock A only, whatever is known of B's.
    locks = channel.locks if channel.cosigned is not None else (channel.locks[0], None)
    previous = channel.cosigned.journal_head if channel.cosigned else ZERO_HASH
    return derive_state(
        fixed=channel.fixed,
        terms=channel.terms,
        position=position,
        locks=locks,
        turn=turn,
        is_final=is_final,
        time_ms=time_ms,
        runs=runs,
        journal_head=next_journal_head(previous, turn, hashes),
    )


def derive_state(
    *,
    fixed: FixedPart,
    terms: Terms,
    position: Position,
    locks: tuple[CollateralLock | None, CollateralLock | None],
    turn: int,
    is_final: bool,
    time_ms: int,
    runs: tuple[Run, ...],
    journal_head: Hash,
) -> Proposal:
    """The state of a position, to the byte: what both brokers sign and what replay recomputes."""
    rows = balance_updates(position, fixed)
    data = AppData.of(
        terms_hash=terms.terms_hash,
        time_ms=time_ms,
        journal_head=journal_head,
        balance_updates=rows,
        open_orders=open_orders_summary(position, fixed),
        collateral=[lock for lock in locks if lock is not None],
    )
    custodies = dict(zip(fixed.participants, terms.custodies, strict=True))
    variable = VariablePart(outcome=outcome_of(rows, custodies), app_data=data.encode())
    state = State(fixed=fixed, turn=turn, is_final=is_final, variable=variable)
    return Proposal(state=state, runs=runs, position=position, journal_head=journal_head, time_ms=time_ms)


def _custodies(channel: Channel) -> dict[Address, Address]:
    return dict(zip(channel.fixed.participants, channel.terms.custodies, strict=True))
