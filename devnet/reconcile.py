"""Whether it all adds up: what the chain has against what the ledgers say, per token, broker and stage, to the unit.

    custody of X on chain = Σ users (deposited + free + locked + withdrawing) + house + Σ over P (bu[X][P] − bu[P][X])
    Σ over custodies, collateral and wallets on chain = Σ over the ledgers, collateral and wallets = what was minted

The right side comes from `GET /admin/audit`, one consistent moment of a node; the left from the chain. Trading moves
nothing on chain, so both are comparable at any moment of it; where something moves, the caller names the block or waits
until nothing is pending. DESIGN section 8.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from channel.units import Address, format_address
from contracts.abi import interface
from contracts.network import TokenAddress
from devnet.network import BrokerNode, Network

USER_PARTS = ("deposited", "free", "locked", "withdrawing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The identity of one broker in one token. Base units; `owed_to_peers` may be negative."""

    stage: str
    broker: str
    token: str
    decimals: int
    custody: int
    deposited: int
    free: int
    locked: int
    withdrawing: int
    house: int
    owed_to_peers: int

    @property
    def ledger(self) -> int:
        return self.deposited + self.free + self.locked + self.withdrawing + self.house + self.owed_to_peers

    @property
    def difference(self) -> int:
        return self.custody - self.ledger

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        amounts = {key: str(value) for key, value in plain.items() if type(value) is int and key != "decimals"}
        return plain | amounts | {"ledger": str(self.ledger), "difference": str(self.difference)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One token over everything. `on_chain`: balances of all contracts and wallets; `ledgers`: the brokers' ledgers,
    the collateral contract's books, and the wallets; `minted`: the token's total supply."""

    stage: str
    token: str
    decimals: int
    on_chain: int
    ledgers: int
    minted: int

    @property
    def is_equal(self) -> bool:
        return self.on_chain == self.ledgers == self.minted

    def to_json(self) -> dict[str, Any]:
        amounts = {name: str(getattr(self, name)) for name in ("on_chain", "ledgers", "minted")}
        return asdict(self) | amounts | {"equal": self.is_equal}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """All lines and totals of one stage."""

    name: str
    lines: tuple[Line, ...]
    totals: tuple[Total, ...]

    @property
    def is_reconciled(self) -> bool:
        return not self.problems()

    def problems(self) -> list[str]:
        """What does not add up, in words."""
        found = [
            f"{self.name}: custody of {line.broker} has {line.custody} base units of {line.token} on chain, its ledger"
            f" says {line.ledger}: {line.difference:+d}"
            for line in self.lines
            if line.difference
        ]
        found += [
            f"{self.name}: {total.minted} base units of {total.token} were minted, the chain has {total.on_chain}, the"
            f" ledgers say {total.ledgers}"
            for total in self.totals
            if not total.is_equal
        ]
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "reconciled": self.is_reconciled,
            "lines": [line.to_json() for line in self.lines],
            "totals": [total.to_json() for total in self.totals],
        }


class Reconciler:
    """`wallets`: everybody who may hold tokens outside the contracts."""

    def __init__(self, net: Network, wallets: Sequence[Address]) -> None:
        self._net = net
        self._wallets = [*wallets, *(broker.address for broker in net.brokers)]

    async def check(self, name: str, *, block: int | None = None) -> Stage:
        """Compares now, or the chain as it was in `block` with the ledgers now. Raises what node and chain answer."""
        audits = await asyncio.gather(*(self._audit(broker) for broker in self._net.brokers))
        lines: list[Line] = []
        totals: list[Total] = []
        for token in self._net.tokens:
            found, total = await self._token(name, token, audits, "latest" if block is None else block)
            lines += found
            totals.append(total)
        return Stage(name=name, lines=tuple(lines), totals=tuple(totals))

    async def _audit(self, broker: BrokerNode) -> Mapping[str, Any]:
        async with self._net.admin(broker) as admin:
            answer = await admin.get("/audit")
        assert isinstance(answer, dict)
        return answer

    async def _token(
        self, name: str, token: TokenAddress, audits: Sequence[Mapping[str, Any]], block: int | str
    ) -> tuple[list[Line], Total]:
        net, chain = self._net, self._net.chain
        holders = [*(broker.custody for broker in net.brokers), net.addresses.collateral, *self._wallets]
        balances = await asyncio.gather(*(chain.balance(token.address, holder, block) for holder in holders))
        deposited = await asyncio.gather(
            *(net.collateral.deposited(broker.address, token.address, block) for broker in net.brokers)
        )
        (minted,) = await chain.call(interface("TestToken").call(token.address, "totalSupply"), block=block)
        lines = [
            _line(name, broker.name.upper(), token, custody, audit)
            for broker, custody, audit in zip(net.brokers, balances[:2], audits, strict=True)
        ]
        wallets = sum(balances[3:])
        return lines, Total(
            stage=name,
            token=token.symbol,
            decimals=token.decimals,
            on_chain=sum(balances),
            ledgers=sum(line.ledger for line in lines) + sum(deposited) + wallets,
            minted=int(minted),
        )


def _line(stage: str, broker: str, token: TokenAddress, custody: int, audit: Mapping[str, Any]) -> Line:
    figures = audit["tokens"][format_address(token.address)]
    return Line(
        stage=stage,
        broker=broker,
        token=token.symbol,
        decimals=token.decimals,
        custody=custody,
        house=int(figures["house"]),
        owed_to_peers=sum(int(value) for value in figures["owedToPeers"].values()),
        **{name: int(figures["users"][name]) for name in USER_PARTS},
    )
