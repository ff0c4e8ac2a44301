"""Outcomes in the exit format, every asset Qualified by the chain and the custody contract that pays it.

    encoded = abi.encode((address asset, (uint8 assetType, bytes metadata), (bytes32 destination, uint256 amount,
              uint8 allocationType, bytes metadata)[] allocations)[])
    assetType = 3 (Qualified), metadata = abi.encode(uint256 chainId, address assetHolder)

An outcome is a function of the balance updates: one asset per row with a total above zero, one allocation to the
owner's custody, rows ascending by (chain id, custody, token) as big-endian bytes. DESIGN section 3; checked to the byte
against tests/vectors/exit_outcomes.json (format: npm @statechannels/exit-format 0.2.0).
"""

from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError

from channel.errors import Code, PeerFault
from channel.state import padded, word
from channel.units import UINT256_MAX, Address, Hash

ASSET_TYPE_QUALIFIED = 3
MAX_ROWS = 64
_EXIT_TYPE = "(address,(uint8,bytes),(bytes32,uint256,uint8,bytes)[])[]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """`amount` base units to `destination` (12 zero bytes and an address)."""

    destination: Hash
    amount: int
    allocation_type: int = 0
    metadata: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetExit:
    """What `asset_holder`, a custody contract on chain `chain_id`, pays of one token."""

    asset: Address
    chain_id: int
    asset_holder: Address
    allocations: tuple[Allocation, ...]


def destination_of(address: Address) -> Hash:
    return Hash(bytes(12) + address)


def encode_outcome(exits: tuple[AssetExit, ...]) -> bytes:
    return word(32) + word(len(exits)) + _offsets_then([_encode_asset(e) for e in exits])


def _encode_asset(asset_exit: AssetExit) -> bytes:
    metadata = word(asset_exit.chain_id) + bytes(12) + asset_exit.asset_holder
    asset_metadata = word(ASSET_TYPE_QUALIFIED) + word(64) + padded(metadata)
    allocations = word(len(asset_exit.allocations)) + _offsets_then(
        [
            a.destination + word(a.amount) + word(a.allocation_type) + word(128) + padded(a.metadata)
            for a in asset_exit.allocations
        ]
    )
    return bytes(12) + asset_exit.asset + word(96) + word(96 + len(asset_metadata)) + asset_metadata + allocations


def _offsets_then(items: list[bytes]) -> bytes:
    """ABI array body of dynamic items: their offsets, then the items."""
    offset, heads = 32 * len(items), []
    for item in items:
        heads.append(word(offset))
        offset += len(item)
    return b"".join(heads) + b"".join(items)


def decode_outcome(encoded: bytes) -> tuple[AssetExit, ...]:
    """The rows of an encoded outcome. Raises PeerFault ENCODING unless it is the one canonical encoding of them."""
    try:
        (rows,) = abi_decode([_EXIT_TYPE], encoded)
        exits = tuple(_decode_asset(row) for row in rows)
    except (DecodingError, OverflowError, ValueError) as error:
        raise PeerFault(Code.ENCODING, "the outcome is not ABI bytes in the exit format") from error
    if encode_outcome(exits) != encoded:
        raise PeerFault(Code.ENCODING, "the outcome is not the canonical ABI encoding of its rows")
    return exits


def _decode_asset(row: Any) -> AssetExit:
    asset, (asset_type, metadata), allocations = row
    if asset_type != ASSET_TYPE_QUALIFIED:
        raise PeerFault(Code.ENCODING, f"assetType must be 3 (Qualified), not {asset_type}")
    chain_id, holder = abi_decode(["uint256", "address"], metadata)
    return AssetExit(
        asset=_raw(asset),
        chain_id=chain_id,
        asset_holder=_raw(holder),
        allocations=tuple(
            Allocation(destination=Hash(d), amount=amount, allocation_type=kind, metadata=meta)
            for d, amount, kind, meta in allocations
        ),
    )


def _raw(text: str) -> Address:
    return Address(bytes.fromhex(text[2:]))


def single_payment(*, asset: Address, chain_id: int, payer: Address, payee: Address, amount: int) -> AssetExit:
    """`payer` and `payee` are custody contracts; `amount` above zero, in base units."""
    if not 0 < amount <= UINT256_MAX:
        raise PeerFault(Code.AMOUNT, "a payment is above zero and fits uint256")
    return AssetExit(
        asset=asset,
        chain_id=chain_id,
        asset_holder=payer,
        allocations=(Allocation(destination=destination_of(payee), amount=amount),),
    )


def sort_key(asset_exit: AssetExit) -> bytes:
    return word(asset_exit.chain_id) + asset_exit.asset_holder + asset_exit.asset
