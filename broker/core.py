"""The broker's core: one action in, effects out, nothing half done.

    execute(action, now_ms) -> effects

An action that is refused raises and has changed nothing; one that breaks an invariant raises InvariantBroken, and the
node must stop, because its memory may differ from what was executed. Replaying the journalled actions with their times
gives the identical core, to the byte of every entry and signature (law D). DESIGN sections 2, 4 and 8.
"""

from collections.abc import Iterable
from typing import assert_never

from broker.actions import (
    Action,
    CancelUserOrder,
    CloseChannel,
    Concluded,
    DepositConfirmed,
    DepositDropped,
    DepositSeen,
    Expire,
    FreezeChannel,
    LockConfirmed,
    LockSigned,
    OpenChannel,
    OpeningShown,
    PaidOut,
    PeerCountersignature,
    PeerEntry,
    PeerProposal,
    PeerRefusal,
    PlaceOrder,
    Propose,
    SubscribeBook,
    Withdraw,
    WithdrawalDone,
    WithdrawalFailed,
)
from broker.desk import Desk
from broker.effects import Effect, Opened, SubmitWithdrawal
from broker.exchange import Exchange
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault
from channel.signing import Signer
from channel.terms import Market
from channel.transition import Phase
from channel.units import ChannelId, MarketId, format_hex


class Core:
    """Holds the exchange and its channels' desks. Not safe for use from two threads."""

    def __init__(self, signer: Signer, markets: Iterable[Market]) -> None:
        self._signer = signer
        self.exchange = Exchange(markets, signer.address)

    @property
    def desks(self) -> dict[ChannelId, Desk]:
        return self.exchange.desks

    def desk(self, channel_id: ChannelId) -> Desk:
        """Raises PeerFault CHANNEL_UNKNOWN."""
        desk = self.desks.get(channel_id)
        if desk is None:
            raise PeerFault(Code.CHANNEL_UNKNOWN, f"there is no channel {format_hex(channel_id)} here")
        return desk

    def execute(self, action: Action, now_ms: int) -> list[Effect]:
        """See the module docstring. Raises PeerFault, LocalRefusal, InvariantBroken."""
        effects = self._dispatch(action, now_ms)
        self.exchange.check()
        return effects

    def _dispatch(self, action: Action, now_ms: int) -> list[Effect]:
        exchange = self.exchange
        match action:
            case PlaceOrder():
                return exchange.place(action.order, action.plan, action.limit_ticks, now_ms)
            case CancelUserOrder():
                return exchange.cancel(action.order_id, action.owner, now_ms)
            case Expire():
                return exchange.expire(now_ms)
            case PeerEntry():
                return self._peer_entry(action, now_ms)
            case PeerProposal():
                return self._peer_proposal(action)
            case PeerCountersignature():
                desk = self.desk(action.channel_id)
                return desk.receive_countersignature(action.turn, action.state_hash, action.signature)
            case PeerRefusal():
                return self.desk(action.channel_id).receive_refusal(action.turn, action.state_hash)
            case Propose():
                return self.desk(action.channel_id).propose(now_ms)
            case SubscribeBook():
                desk = self.desk(action.channel_id)
                return exchange.subscribe(desk, MarketId(action.market_id), action.on, now_ms)[1]
            case OpenChannel():
                return self._open(action)
            case LockSigned():
                return self.desk(action.lock.lock.channel_id).lock_signed(action.lock)
            case LockConfirmed():
                self.desk(action.channel_id).lock_confirmed(
                    action.owner, action.token, action.amount, action.terms_hash
                )
                return []
            case OpeningShown():
                self.desk(action.channel_id).opening_shown = True
                return []
            case CloseChannel():
                return exchange.close_channel(self.desk(action.channel_id), now_ms)
            case FreezeChannel():
                return exchange.freeze_channel(self.desk(action.channel_id), Code[action.code], action.message)
            case PaidOut():
                desk = self.desk(action.channel_id)
                exchange.paid_out(desk, action.token, action.amount, outgoing=action.outgoing)
                return []
            case Concluded():
                exchange.settle_if_paid(self.desk(action.channel_id))
                return []
            case DepositSeen():
                exchange.ledger.deposit_seen(action.user, action.token, action.amount)
                return []
            case DepositConfirmed():
                exchange.ledger.deposit_confirmed(action.user, action.token, action.amount)
                return []
            case DepositDropped():
                exchange.ledger.deposit_dropped(action.user, action.token, action.amount)
                return []
            case Withdraw():
                exchange.withdraw(action.request)
                return [SubmitWithdrawal(action.request.withdrawal_id)]
            case WithdrawalDone():
                exchange.withdrawal_done(action.withdrawal_id)
                return []
            case WithdrawalFailed():
                exchange.withdrawal_failed(action.withdrawal_id)
                return []
            case _:
                assert_never(action)

    def _peer_entry(self, action: PeerEntry, now_ms: int) -> list[Effect]:
        desk = self.desk(action.entry.channel_id)
        calls, effects = desk.receive_entry(action.entry)
        try:
            return effects + self.exchange.apply_calls(desk, action.entry.seq, calls, now_ms)
        except (PeerFault, LocalRefusal) as error:
            raise InvariantBroken(Code.CONSERVATION, f"an entry was taken, but not its effect: {error}") from error

    def _peer_proposal(self, action: PeerProposal) -> list[Effect]:
        desk = self.desk(action.channel_id)
        return desk.receive_proposal(
            turn=action.turn,
            is_final=action.is_final,
            time_ms=action.time_ms,
            runs=action.runs,
            state_hash=action.state_hash,
            signature=action.signature,
        )

    def _open(self, action: OpenChannel) -> list[Effect]:
        """Raises LocalRefusal CHANNEL_PHASE: this version keeps one channel at a time, and CHANNEL_TERMS."""
        fixed = action.fixed
        if fixed.channel_id in self.desks:
            return []
        require_no_channel(self.desks.values())
        for desk in self.desks.values():
            same = desk.channel.fixed.participants == fixed.participants
            if same and fixed.channel_nonce <= desk.channel.fixed.channel_nonce:
                raise LocalRefusal(Code.CHANNEL_TERMS, "channelNonce must be above that of every earlier channel")
        desk = Desk(fixed, action.terms, self._signer)
        self.desks[fixed.channel_id] = desk
        return [Opened(fixed.channel_id, desk.peer)]


def require_no_channel(desks: Iterable[Desk]) -> None:
    """Raises LocalRefusal CHANNEL_PHASE while a channel may still move value.

    One that was frozen before its first entry owes nothing and signs nothing: a peer that never finished opening must
    not keep this node from opening another.
    """
    for desk in desks:
        channel = desk.channel
        unused = channel.phase is Phase.FROZEN and channel.view.last_seq == (0, 0)
        if channel.phase is not Phase.SETTLED and not unused:
            raise LocalRefusal(
                Code.CHANNEL_PHASE, "a channel is open already; this version keeps one at a time: close it first"
            )
