"""Outcomes in the exit format, every asset Qualified by the chain and the custody contract that pays it.

    encoded = abi.encode((address asset, (uint8 assetType, bytes metadata), (bytes32 destination, uint256 amount,
              uint8 allocationType, bytes metadata)[] allocations)[])
    assetType = 3 (Qualified), metadata = abi.encode(uint256 chainId, address assetHolder)

An outcome is a function of the balance updates: one asset per row with a total above zero, one allocation to the
owner's custody, rows ascending by (chain id, custody, token) as big-endian bytes. DESIGN section 3; checked to the byte
against tests/vectors/exit_outcomes.json (format: npm @statechannels/exit-format 0.2.0).
"""

from dataclasses import dataclass

from channel.errors import Code, PeerFault
from channel.state import padded, word
from channel.units import UINT256_MAX, Address, Hash

ASSET_TYPE_QUALIFIED = 3


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
    """The rows of an encoded outcome. Raises PeerFault ENCODING unless it is the one canonical encoding of them.

    Reads straight through, as the canonical encoding lies, and then compares: no offset is followed, so that the time
    is linear in the bytes whatever they say.
    """
    reader = _Reader(encoded)
    try:
        reader.skip(32)
        exits = tuple(_read_asset(reader) for _ in reader.array())
    except ValueError as error:
        raise PeerFault(Code.ENCODING, f"the outcome is not ABI bytes in the exit format: {error}") from error
    if encode_outcome(exits) != encoded:
        raise PeerFault(Code.ENCODING, "the outcome is not the canonical ABI encoding of its rows")
    return exits


class _Reader:
    """Takes bytes one after the other. Raises ValueError at the end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._raw):
            raise ValueError("it ends too early")
        self._at, taken = end, self._raw[self._at : end]
        return taken

    def skip(self, size: int) -> None:
        self.take(size)

    def uint(self) -> int:
        return int.from_bytes(self.take(32), "big")

    def address(self) -> Address:
        return Address(self.take(32)[12:])

    def array(self) -> range:
        """The indices of an array of dynamic items, past their offsets."""
        count = self.uint()
        self.skip(32 * count)
        return range(count)

    def padded(self) -> bytes:
        size = self.uint()
        return self.take(size + -size % 32)[:size]


def _read_asset(r: _Reader) -> AssetExit:
    asset = r.address()
    r.skip(64)
    if (asset_type := r.uint()) != ASSET_TYPE_QUALIFIED:
        raise ValueError(f"assetType must be 3 (Qualified), not {asset_type}")
    r.skip(32)
    if r.uint() != 64:
        raise ValueError("metadata must be a chain id and an address")
    chain_id, holder = r.uint(), r.address()
    return AssetExit(
        asset=asset, chain_id=chain_id, asset_holder=holder, allocations=tuple(_read_allocation(r) for _ in r.array())
    )


def _read_allocation(r: _Reader) -> Allocation:
    destination, amount, allocation_type = Hash(r.take(32)), r.uint(), r.uint()
    if allocation_type > 255:
        raise ValueError("allocationType must fit uint8")
    r.skip(32)
    return Allocation(destination=destination, amount=amount, allocation_type=allocation_type, metadata=r.padded())


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
