"""The broker's side of the chain: what it reads becomes actions, what its state asks for becomes transactions.

Deposits count when they have their confirmations and are taken back when their block is; the watcher's cursor is stored
in the transaction that stores the effects. Transactions are driven by state, not by memory: each pass looks at what is
pending (withdrawals), asks the chain whether it is done already, and sends what is missing. A head that is stale stops
withdrawals. DESIGN sections 7 and 8; FAULTS 20, 21.
"""

import asyncio

from broker.actions import (
    Action,
    Concluded,
    DepositConfirmed,
    DepositDropped,
    DepositSeen,
    FreezeChannel,
    LockConfirmed,
    PaidOut,
    WithdrawalDone,
    WithdrawalFailed,
)
from broker.config import BrokerConfig
from broker.desk import Desk
from broker.engine import Engine
from broker.exchange import Withdrawal
from broker.records import DELETE_SEEN, INSERT_SEEN, SET_META
from channel import transition
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from channel.signing import Signer
from channel.strictjson import dumps, loads
from channel.transition import Phase
from channel.typed import WITHDRAWAL_APPROVAL, Domain
from channel.units import Address, ChannelId, Hash, format_address, format_hex
from contracts import events
from contracts.client import ChainClient, Sender
from contracts.network import Adjudicator, Collateral, Custody, Factory, LockStatus
from contracts.network import Withdrawal as ChainWithdrawal
from contracts.watcher import Cursor, Poll, Watcher
from node import logs
from node.store import Statement

STALE_HEAD_S = 60.0
RETRY_S = 1.0
MAX_PARALLEL_WITHDRAWALS = 32

_log = logs.get("broker.chain")


class ChainWork:
    """Made by `ChainWork.connect`, which also makes sure that the broker has a custody and is registered."""

    def __init__(
        self, config: BrokerConfig, engine: Engine, signer: Signer, client: ChainClient, custody: Address
    ) -> None:
        network = config.network
        self.client = client
        self.sender = Sender(client, signer)
        self.custody = Custody(client, custody)
        self.collateral = Collateral(client, network.collateral)
        self.adjudicator = Adjudicator(client, network.adjudicator)
        self.head_unix_s = 0
        self._config = config
        self._engine = engine
        self._signer = signer
        self._watcher: Watcher | None = None
        self._withdrawing: dict[Hash, asyncio.Task[None]] = {}
        self._approved: set[Hash] = set()  # pending withdrawals that are durable
        self._slots = asyncio.Semaphore(MAX_PARALLEL_WITHDRAWALS)

    # -- start

    @staticmethod
    async def ensure_custody(config: BrokerConfig, signer: Signer, client: ChainClient) -> Address:
        """The broker's custody contract; makes it, with XLN as attestor, and registers the broker, where missing.

        Raises LocalRefusal CHAIN_REVERTED or CHAIN; a missing balance for gas is said with the address to fund.
        """
        network, sender = config.network, Sender(client, signer)
        factory, collateral = Factory(client, network.factory), Collateral(client, network.collateral)
        custody = await factory.custody_of(signer.address)
        registered = await collateral.broker_of(signer.address)
        wanted = config.rpc.public_url or f"ws://{config.rpc.host}:{config.rpc.port}"
        if custody is not None and registered == (custody, wanted):
            return custody
        if not await client.balance(Address(bytes(20)), signer.address):
            raise LocalRefusal(
                Code.CHAIN,
                f"the broker's key {format_address(signer.address)} has nothing to pay gas with: send it some native"
                " currency and start again",
            )
        if custody is None:
            custody = (await factory.create(sender, [network.xln], 1)).address
            _log.info("custody made", custody=format_address(custody))
        if registered != (custody, wanted):
            await collateral.register(sender, custody, wanted)
            _log.info("registered", custody=format_address(custody), url=wanted)
        return custody

    async def start(self) -> None:
        """Takes up where the last run ended: what was seen and not confirmed is taken back and seen again."""
        withdrawals = self._engine.core.exchange.withdrawals.values()
        self._approved = {w.withdrawal_id for w in withdrawals if w.status == "pending"}
        rows = await self._engine.store.read("SELECT tx, log_index, user, token, amount FROM seen")
        for tx, log_index, user, token, amount in rows:
            dropped = DepositDropped(_address(user), _address(token), int(str(amount)))
            await self._engine.execute(dropped, [Statement(DELETE_SEEN, (tx, log_index))])
        stored = await self._engine.store.read("SELECT value FROM meta WHERE key = 'cursor'")
        cursor = None
        if stored:
            raw = loads(str(stored[0][0]), max_bytes=1000)
            assert isinstance(raw, list)
            cursor = Cursor(number=raw[0], hash=Hash(bytes.fromhex(raw[1])))
        network = self._config.network
        addresses = [self.custody.address, network.collateral, network.adjudicator]
        for desk in self._engine.core.desks.values():
            addresses.append(desk.channel.terms.custodies[1 - desk.me])
        self._watcher = Watcher(
            self.client,
            addresses,
            confirmations=network.confirmations,
            cursor=cursor,
            from_block=network.from_block,
        )

    def watch(self, custody: Address) -> None:
        """Follows one more contract: the custody of a peer."""
        assert self._watcher is not None
        self._watcher.add_address(custody)

    # -- reading

    async def run(self) -> None:
        """Polls for ever. An endpoint that fails is said once and asked again."""
        assert self._watcher is not None
        failing = False
        refused: Poll | None = None  # what could not be stored (too busy) is kept: the watcher does not show it twice
        while True:
            try:
                poll = refused or await self._watcher.poll()
                refused = poll
                await self._apply(poll)
                refused = None
                self.head_unix_s = poll.head.timestamp
                if failing:
                    _log.info("the chain answers again", block=poll.head.number)
                failing = False
                self._serve_withdrawals()
                if poll.behind:
                    continue
            except LocalRefusal as refusal:
                if not failing:
                    _log.warning("the chain is not read", error=str(refusal))
                failing = True
            await asyncio.sleep(self._config.network.poll_s)

    async def _apply(self, poll: Poll) -> None:
        """Everything that a poll found and its cursor, in one transaction."""
        actions: list[Action] = []
        rows: list[Statement] = []
        for event in poll.dropped:
            if isinstance(event, events.Deposited) and event.ref.contract == self.custody.address:
                if not self._takes(event.token):
                    continue
                actions.append(DepositDropped(event.user, event.token, event.amount))
                rows.append(Statement(DELETE_SEEN, (event.ref.tx_hash, event.ref.log_index)))
                _log.warning("a deposit is gone from the chain", user=format_address(event.user))
        for event in poll.seen:
            if isinstance(event, events.Deposited) and event.ref.contract == self.custody.address:
                if not self._takes(event.token):
                    continue
                actions.append(DepositSeen(event.user, event.token, event.amount))
                key = (event.ref.tx_hash, event.ref.log_index)
                rows.append(Statement(INSERT_SEEN, (*key, event.user, event.token, str(event.amount))))
        for event in poll.confirmed:
            actions += self._confirmed(event, rows)
        cursor = dumps([poll.cursor.number, poll.cursor.hash.hex()])
        rows.append(Statement(SET_META, ("cursor", cursor)))
        if not actions and poll.cursor.number % 16:
            return  # an old cursor only means that a few empty blocks are read again
        await self._engine.execute_all(actions, rows)

    def _takes(self, token: Address) -> bool:
        """Only configured tokens: anyone can deploy one and deposit it. Others stay in custody, unbooked."""
        return any(t.address == token for t in self._config.tokens)

    def _confirmed(self, event: events.ChainEvent, rows: list[Statement]) -> list[Action]:
        own = event.ref.contract == self.custody.address
        match event:
            case events.Deposited() if own and self._takes(event.token):
                rows.append(Statement(DELETE_SEEN, (event.ref.tx_hash, event.ref.log_index)))
                return [DepositConfirmed(event.user, event.token, event.amount)]
            case events.Withdrawn() if own:
                request = self._engine.core.exchange.withdrawals.get(Hash(event.id))
                if request is None or request.status != "pending":
                    raise InvariantBroken(
                        Code.CONSERVATION, f"custody paid withdrawal {format_hex(event.id)}, which is not pending here"
                    )
                return [WithdrawalDone(Hash(event.id))]
            case events.LockRegistered() if event.ref.contract == self.collateral.address:
                return self._lock_registered(event)
            case events.PaidOut():
                return self._paid_out(event)
            case events.Concluded() if event.ref.contract == self.adjudicator.address:
                desk = self._engine.core.desks.get(ChannelId(event.channel_id))
                if desk is not None and desk.channel.phase is Phase.FINAL:
                    return [Concluded(desk.channel_id)]
            case _:
                pass
        return []

    def _lock_registered(self, event: events.LockRegistered) -> list[Action]:
        desk = self._engine.core.desks.get(ChannelId(event.channel_id))
        if desk is None or desk.channel.phase is not Phase.OPENING:
            return []
        return [_lock_action(desk, event.owner, event.token, event.amount, Hash(event.terms_hash))]

    async def find_locks(self, desk: Desk) -> None:
        """Locks that were confirmed before this node knew the channel: their events have passed.

        Read in the last confirmed block, so that no reorganisation takes back what is found.
        """
        assert self._watcher is not None
        for index, owner in enumerate(desk.channel.fixed.participants):
            if desk.channel.locks_confirmed[index] or desk.channel.phase is not Phase.OPENING:
                continue
            lock = await self.collateral.lock_of(desk.channel_id, owner, self._watcher.cursor.number)
            if lock is not None and lock.status is LockStatus.LOCKED and desk.channel.phase is Phase.OPENING:
                await self._engine.execute(_lock_action(desk, owner, lock.token, lock.amount, lock.terms_hash))

    def _paid_out(self, event: events.PaidOut) -> list[Action]:
        """A payout between the two custodies of one of this broker's channels."""
        desk = self._engine.core.desks.get(ChannelId(event.channel_id))
        if desk is None:
            return []
        mine = self.custody.address
        theirs = desk.channel.terms.custodies[1 - desk.me]
        if (event.ref.contract, event.to) == (mine, theirs):
            return [PaidOut(desk.channel_id, event.token, event.amount, True)]
        if (event.ref.contract, event.to) == (theirs, mine):
            return [PaidOut(desk.channel_id, event.token, event.amount, False)]
        return []

    def require_fresh(self) -> None:
        """Raises LocalRefusal CHAIN_STALE when the head is old: nothing leaves custody on stale knowledge."""
        assert self._watcher is not None
        self._watcher.require_fresh(self._engine.clock.now_ms() / 1000, STALE_HEAD_S)

    # -- withdrawals

    def _serve_withdrawals(self) -> None:
        """Starts a task for each pending withdrawal that is durable and has none."""
        if self._engine.failure is not None:
            return
        for withdrawal_id in list(self._approved):
            request = self._engine.core.exchange.withdrawals[withdrawal_id]
            if request.status != "pending":
                self._approved.discard(withdrawal_id)
            elif withdrawal_id not in self._withdrawing:
                self._withdrawing[withdrawal_id] = asyncio.ensure_future(self._withdraw(request))

    def approve(self, withdrawal_id: Hash) -> None:
        """The withdrawal is durable: from now on it may be signed and sent."""
        self._approved.add(withdrawal_id)

    async def _withdraw(self, request: Withdrawal) -> None:
        """Sends it until it is on chain, or gives it back once its deadline has passed there unused."""
        try:
            while request.status == "pending":
                try:
                    async with self._slots:
                        self.require_fresh()
                        if not await self.custody.withdrawal_used(request.withdrawal_id):
                            if self.head_unix_s > request.deadline_s and await self._is_dead(request):
                                await self._engine.execute(WithdrawalFailed(request.withdrawal_id))
                                return
                            if self.head_unix_s <= request.deadline_s:
                                await self._send_withdrawal(request)
                except XlnError as error:
                    _log.warning("withdrawal waits", id=format_hex(request.withdrawal_id), error=str(error))
                await asyncio.sleep(RETRY_S)
        finally:
            self._withdrawing.pop(request.withdrawal_id, None)

    async def _is_dead(self, request: Withdrawal) -> bool:
        """Whether a block with confirmations is past the deadline and the id is unused in it."""
        assert self._watcher is not None
        cursor = self._watcher.cursor
        block = await self.client.block(cursor.number)
        if block is None or block.hash != cursor.hash or block.timestamp <= request.deadline_s:
            return False
        # In that very block: an endpoint that lags would otherwise call a paid withdrawal unused.
        return not await self.custody.withdrawal_used(request.withdrawal_id, block.number)

    async def _send_withdrawal(self, request: Withdrawal) -> None:
        struct_hash = WITHDRAWAL_APPROVAL.hash(
            request.user, request.token, request.amount, request.to, request.withdrawal_id, request.deadline_s
        )
        approval = self._signer.sign(self.domain.digest(struct_hash))
        withdrawal = ChainWithdrawal(
            user=request.user,
            token=request.token,
            amount=request.amount,
            to=request.to,
            id=request.withdrawal_id,
            deadline_unix_s=request.deadline_s,
        )
        receipt = await self.custody.withdraw(self.sender, withdrawal, request.user_signature, approval)
        _log.info("withdrawal sent", id=format_hex(request.withdrawal_id), gas=receipt.gas_used)

    @property
    def domain(self) -> Domain:
        return Domain.of("XLN Custody", self.client.chain_id, self.custody.address)

    async def stop_work(self) -> None:
        tasks = list(self._withdrawing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _address(value: object) -> Address:
    assert isinstance(value, bytes)
    return Address(value)


def _lock_action(desk: Desk, owner: Address, token: Address, amount: int, terms_hash: Hash) -> Action:
    """A lock of a channel that opens. One that does not fit it voids the channel: XLN has signed for other terms.

    The peer can bring that about, so it must not be an error here: the chain would show it again for ever.
    """
    fixed = desk.channel.fixed
    try:
        transition.lock_confirmed(desk.channel, fixed.index_of(owner), token, amount, terms_hash)
    except PeerFault as fault:
        message = f"the chain has another lock for this channel: {fault.message}"
        _log.error("channel frozen", channel=format_hex(desk.channel_id), reason=message)
        return FreezeChannel(desk.channel_id, fault.code.name, message)
    return LockConfirmed(desk.channel_id, owner, token, amount, terms_hash)
