"""The watcher against a naive model: a chain that grows, forks and is read while it changes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.hashing import keccak
from channel.units import ZERO_ADDRESS, ZERO_HASH, Address, Hash
from contracts.abi import topic
from contracts.client import BlockRef
from contracts.events import ChainEvent, Deposited, LogRef, RawLog
from contracts.watcher import (
    RANGE_BLOCKS,
    RANGES_MAX,
    Cursor,
    NotLinked,
    Watcher,
    WatchState,
    amend,
    confirm,
    extend,
    rewind,
)

CUSTODY = Address(b"\xc1" * 20)
LATE_CUSTODY = Address(b"\xc2" * 20)
STRANGER = Address(b"\x55" * 20)
DEPOSITED = topic("Deposited(address,address,uint256)")


def _deposit(contract: Address, block: BlockRef, index: int, amount: int) -> RawLog:
    return RawLog(
        ref=LogRef(
            contract=contract,
            block_number=block.number,
            block_hash=block.hash,
            tx_hash=Hash(keccak(b"tx" + amount.to_bytes(8, "big"))),
            log_index=index,
        ),
        topics=(DEPOSITED, bytes(12) + STRANGER, bytes(32)),
        data=amount.to_bytes(32, "big"),
    )


@dataclass
class Chain:
    """A source whose blocks the test makes. `on_request` runs before each answer: there the chain may change."""

    blocks_: list[BlockRef] = field(default_factory=list)
    logs: dict[Hash, list[RawLog]] = field(default_factory=dict)
    salt: int = 0
    amount: int = 0
    on_request: list[object] = field(default_factory=list)
    requests: int = 0
    hidden: int = 0  # blocks at the top that the endpoint does not show: it lags

    def mine(self, contracts: Sequence[Address] = ()) -> BlockRef:
        self.salt += 1
        number = len(self.blocks_)
        parent = self.blocks_[-1].hash if self.blocks_ else ZERO_HASH
        block = BlockRef(
            number=number,
            hash=Hash(keccak(b"%d/%d" % (number, self.salt))),
            parent_hash=parent,
            timestamp=1_000 + number,
        )
        self.blocks_.append(block)
        self.logs[block.hash] = []
        for index, contract in enumerate(contracts):
            self.amount += 1
            self.logs[block.hash].append(_deposit(contract, block, index, self.amount))
        return block

    def reorg(self, depth: int, contracts: Sequence[Address]) -> None:
        del self.blocks_[-depth:]
        for _ in range(depth):
            self.mine()
        self.mine(contracts)

    def amounts(self, contracts: Sequence[Address], first: int, last: int) -> list[int]:
        """The model's answer: amounts of the canonical chain in blocks first to last."""
        return [
            int.from_bytes(log.data, "big")
            for block in self.blocks_[max(first, 0) : last + 1]
            for log in self.logs[block.hash]
            if log.ref.contract in contracts
        ]

    def _tick(self) -> list[BlockRef]:
        self.requests += 1
        if self.on_request:
            step = self.on_request.pop(0)
            if callable(step):
                step()
        return self.blocks_[: len(self.blocks_) - self.hidden]

    async def head(self) -> BlockRef:
        return self._tick()[-1]

    async def block(self, number: int) -> BlockRef | None:
        shown = self._tick()
        return shown[number] if number < len(shown) else None

    async def blocks(self, first: int, last: int) -> tuple[BlockRef, ...]:
        return tuple(self._tick()[first : last + 1])

    async def logs_of_blocks(self, hashes: Sequence[Hash], addresses: Sequence[Address]) -> tuple[RawLog, ...]:
        shown = {b.hash for b in self._tick()}
        if not set(hashes) <= shown:
            raise LocalRefusal(Code.CHAIN, "header not found")
        return tuple(log for h in hashes for log in self.logs[h] if log.ref.contract in addresses)

    async def logs_in_range(self, first: int, last: int, addresses: Sequence[Address]) -> tuple[RawLog, ...]:
        assert last - first < RANGE_BLOCKS
        shown = self._tick()[first : last + 1]
        return tuple(log for b in shown for log in self.logs[b.hash] if log.ref.contract in addresses)


def _amounts(events: Sequence[ChainEvent]) -> list[int]:
    return [e.amount for e in events if isinstance(e, Deposited)]


def _watcher(chain: Chain, confirmations: int, cursor: Cursor | None = None) -> Watcher:
    return Watcher(chain, [CUSTODY], confirmations=confirmations, cursor=cursor)


async def test_an_event_is_seen_first_and_confirmed_when_it_is_deep_enough() -> None:
    chain = Chain()
    chain.mine()
    watcher = _watcher(chain, 3)
    chain.mine([CUSTODY])
    poll = await watcher.poll()
    assert (_amounts(poll.seen), _amounts(poll.confirmed)) == ([1], [])
    assert poll.seen[0] == Deposited(ref=poll.seen[0].ref, user=STRANGER, token=ZERO_ADDRESS, amount=1)
    chain.mine()
    poll = await watcher.poll()
    assert (poll.seen, poll.confirmed) == ((), ())
    chain.mine()
    poll = await watcher.poll()
    assert (_amounts(poll.seen), _amounts(poll.confirmed)) == ([], [1])
    assert poll.cursor == Cursor(number=1, hash=chain.blocks_[1].hash)


async def test_one_confirmation_means_in_the_head() -> None:
    chain = Chain()
    chain.mine([CUSTODY])
    poll = await _watcher(chain, 1).poll()
    assert _amounts(poll.seen) == _amounts(poll.confirmed) == [1]


async def test_a_replaced_block_takes_its_events_back() -> None:
    chain = Chain()
    chain.mine()
    watcher = _watcher(chain, 4)
    chain.mine([CUSTODY])
    await watcher.poll()
    chain.reorg(1, [CUSTODY])
    poll = await watcher.poll()
    assert (_amounts(poll.dropped), _amounts(poll.seen), poll.confirmed) == ([1], [2], ())


async def test_a_reorganisation_below_the_cursor_is_an_alarm_and_changes_nothing() -> None:
    chain = Chain()
    for _ in range(5):
        chain.mine([CUSTODY])
    watcher = _watcher(chain, 2)
    await watcher.poll()
    before = watcher.cursor
    chain.reorg(3, [])
    for _ in range(2):
        with pytest.raises(InvariantBroken) as caught:
            await watcher.poll()
        assert caught.value.code is Code.CHAIN_REORG
    assert watcher.cursor == before


async def test_an_endpoint_that_lags_takes_nothing_back() -> None:
    chain = Chain()
    for _ in range(6):
        chain.mine([CUSTODY])
    watcher = _watcher(chain, 3)
    await watcher.poll()
    for chain.hidden in (1, 2, 3, 5):
        poll = await watcher.poll()
        assert (poll.seen, poll.confirmed, poll.dropped) == ((), (), ())
    chain.hidden = 0
    chain.mine([CUSTODY])
    assert _amounts((await watcher.poll()).seen) == [7]


async def test_a_poll_is_bounded_and_says_what_is_left() -> None:
    chain = Chain()
    total = RANGE_BLOCKS * RANGES_MAX * 2 + 7
    for number in range(total):
        chain.mine([CUSTODY] if number % 50 == 0 else [])
    watcher = _watcher(chain, 2)
    polls = [await watcher.poll()]
    assert polls[0].behind == total - RANGE_BLOCKS * RANGES_MAX
    assert chain.requests <= 2 * RANGES_MAX + 2
    while polls[-1].behind:
        polls.append(await watcher.poll())
    assert len(polls) == 3
    assert [a for p in polls for a in _amounts(p.confirmed)] == chain.amounts([CUSTODY], 0, total - 2)


async def test_a_later_contract_is_read_from_the_cursor_on() -> None:
    chain = Chain()
    for _ in range(3):
        chain.mine([LATE_CUSTODY, CUSTODY])
    watcher = _watcher(chain, 2)
    poll = await watcher.poll()
    assert (_amounts(poll.seen), _amounts(poll.confirmed)) == ([2, 4, 6], [2, 4])
    watcher.add_address(LATE_CUSTODY)
    chain.mine([LATE_CUSTODY])
    poll = await watcher.poll()
    assert (_amounts(poll.seen), _amounts(poll.confirmed)) == ([5, 7], [5, 6])


async def test_a_failed_poll_is_repeated_in_full() -> None:
    chain = Chain()
    chain.mine()
    watcher = _watcher(chain, 2)
    await watcher.poll()
    chain.mine([CUSTODY])

    def fail() -> None:
        raise LocalRefusal(Code.CHAIN, "gone")

    chain.on_request = [None, fail]
    with pytest.raises(LocalRefusal):
        await watcher.poll()
    assert _amounts((await watcher.poll()).seen) == [1]


async def test_no_contracts_means_no_events_and_not_everybodys() -> None:
    chain = Chain()
    for _ in range(100):
        chain.mine([CUSTODY])
    poll = await Watcher(chain, [], confirmations=2).poll()
    assert (poll.seen, poll.cursor.number) == ((), 98)


async def test_a_stale_head_is_refused() -> None:
    chain = Chain()
    chain.mine()
    watcher = _watcher(chain, 1)
    with pytest.raises(LocalRefusal, match="not been read"):
        watcher.require_fresh(0.0, 10.0)
    await watcher.poll()
    watcher.require_fresh(1_009.0, 10.0)
    with pytest.raises(LocalRefusal) as caught:
        watcher.require_fresh(1_011.0, 10.0)
    assert caught.value.code is Code.CHAIN_STALE


@pytest.mark.parametrize("confirmations", [0, 257])
def test_confirmations_are_bounded(confirmations: int) -> None:
    with pytest.raises(LocalRefusal) as caught:
        _watcher(Chain(), confirmations)
    assert caught.value.code is Code.CONFIG


def test_the_core_refuses_what_does_not_link() -> None:
    chain = Chain()
    blocks = [chain.mine([CUSTODY]) for _ in range(3)]
    start = WatchState(confirmations=2, cursor=Cursor(number=-1, hash=ZERO_HASH))
    state, _ = extend(start, blocks[:1], [])
    with pytest.raises(NotLinked):
        extend(state, blocks[2:], [])
    chain.reorg(2, [])
    with pytest.raises(NotLinked):
        extend(extend(state, blocks[1:2], [])[0], [chain.blocks_[2]], [])
    stray = Deposited(ref=_deposit(CUSTODY, chain.blocks_[2], 0, 1).ref, user=STRANGER, token=ZERO_ADDRESS, amount=1)
    with pytest.raises(NotLinked):
        extend(state, blocks[1:2], [stray])
    with pytest.raises(NotLinked):
        amend(state, [stray])


@given(st.integers(1, 6), st.integers(0, 12), st.integers(0, 12))
def test_confirm_and_rewind_split_the_window(confirmations: int, length: int, fork: int) -> None:
    chain = Chain()
    blocks = [chain.mine() for _ in range(length)]
    state, _ = extend(WatchState(confirmations=confirmations, cursor=Cursor(number=-1, hash=ZERO_HASH)), blocks, [])
    done, _ = confirm(state)
    assert done.cursor.number == max(-1, length - confirmations)
    assert [s.block.number for s in done.window] == list(range(done.cursor.number + 1, length))
    back, _ = rewind(done, fork)
    assert back.top.number == max(done.cursor.number, min(fork, length - 1))


class WatcherMachine(RuleBasedStateMachine):
    """Any growth, forks (in the middle of a poll too), a lagging endpoint, restarts: the model is the chain itself."""

    @initialize(confirmations=st.integers(1, 6))
    def start(self, confirmations: int) -> None:
        self.confirmations = confirmations
        self.chain = Chain()
        self.chain.mine()
        self.watcher = _watcher(self.chain, confirmations)
        self.live: list[ChainEvent] = []  # seen, not taken back, not confirmed
        self.confirmed: list[int] = []

    def _fork(self, depth: int, deposits: int) -> None:
        """Replaces blocks that nobody could have confirmed: fewer than `confirmations` of them."""
        depth = min(depth, self.confirmations - 1, len(self.chain.blocks_) - 1)
        if depth > 0:
            self.chain.reorg(depth, [CUSTODY] * deposits)

    @rule(deposits=st.lists(st.integers(0, 2), min_size=1, max_size=50))
    def mine(self, deposits: list[int]) -> None:
        for count in deposits:
            self.chain.mine([CUSTODY, STRANGER] * count)

    @rule(depth=st.integers(1, 5), deposits=st.integers(0, 2))
    def fork(self, depth: int, deposits: int) -> None:
        self._fork(depth, deposits)

    @rule()
    def restart(self) -> None:
        self.watcher = _watcher(self.chain, self.confirmations, self.watcher.cursor)
        self.live.clear()

    @rule(hidden=st.integers(1, 4))
    def poll_a_lagging_endpoint(self, hidden: int) -> None:
        self.chain.hidden = min(hidden, len(self.chain.blocks_) - 1)
        self._poll()
        self.chain.hidden = 0

    @rule(moments=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=6))
    def poll_while_it_forks(self, moments: list[tuple[int, int]]) -> None:
        self.chain.on_request = [lambda d=d, n=n: self._fork(d, n) for d, n in moments]
        self._poll()
        self.chain.on_request = []

    @rule()
    def poll_in_peace(self) -> None:
        self._poll()
        while self._poll():
            pass
        cursor, height = self.watcher.cursor.number, len(self.chain.blocks_) - 1
        assert cursor == max(-1, height - self.confirmations + 1)
        assert _amounts(self.live) == self.chain.amounts([CUSTODY], cursor + 1, height)

    def _poll(self) -> int:
        """One poll, applied as a caller would. Returns how many blocks are left."""
        try:
            poll = asyncio.run(self.watcher.poll())
        except LocalRefusal as error:  # it asked for a block that was replaced meanwhile
            if error.code is not Code.CHAIN:
                raise
            return 0
        for event in poll.dropped:
            self.live.remove(event)
        for event in poll.seen:
            assert event not in self.live
            self.live.append(event)
        for event in poll.confirmed:
            self.live.remove(event)
            self.confirmed.append(_amounts([event])[0])
        return poll.behind

    @invariant()
    def what_is_confirmed_is_the_chain_up_to_the_cursor(self) -> None:
        assert self.confirmed == self.chain.amounts([CUSTODY], 0, self.watcher.cursor.number)


TestWatcherMachine = WatcherMachine.TestCase
