"""States that two brokers sign: FixedPart, VariablePart, header, and the hashes of ForceMove / Nitro 0.17.

    channelId   = keccak(abi.encode(uint256 chainId, address[] participants, uint256 channelNonce))
    appPartHash = keccak(abi.encode(uint256 challengeDuration, address appDefinition, bytes appData))
    outcomeHash = keccak(outcome)
    stateHash   = keccak(abi.encode(turnNum, isFinal, channelId, appPartHash, outcomeHash))
    digest      = keccak("\\x19Ethereum Signed Message:\\n32" ++ stateHash)

Codecs take 1 to 255 participants in any order and any uint48; `require_ours` holds the narrower limits of channels that
this node opens. DESIGN section 3; checked to the byte against tests/vectors/nitro_states.json.
"""

from dataclasses import dataclass, field

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.signing import eth_sign_digest
from channel.units import UINT48_MAX, UINT256_MAX, ZERO_ADDRESS, Address, ChannelId, Hash

MAX_TURN = UINT48_MAX - 2
MAX_CHALLENGE_DURATION_S = 30 * 24 * 3600


def word(value: int) -> bytes:
    """One ABI word of an unsigned integer."""
    return value.to_bytes(32, "big")


def padded(raw: bytes) -> bytes:
    """ABI bytes: length, then the bytes padded with zeros to whole words."""
    return word(len(raw)) + raw + bytes(-len(raw) % 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPart:
    """What never changes in a channel. `challenge_duration_s` is in seconds, `channel_nonce` the opening time in ms."""

    chain_id: int
    participants: tuple[Address, ...]
    channel_nonce: int
    app_definition: Address
    challenge_duration_s: int
    channel_id: ChannelId = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.participants) <= 255:
            raise PeerFault(Code.ENCODING, f"a channel has 1 to 255 participants, not {len(self.participants)}")
        if not 0 <= self.chain_id <= UINT256_MAX:
            raise PeerFault(Code.ENCODING, "chainId must fit uint256")
        for name, value in (("channelNonce", self.channel_nonce), ("challengeDuration", self.challenge_duration_s)):
            if not 0 <= value <= UINT48_MAX:
                raise PeerFault(Code.ENCODING, f"{name} must fit uint48")
        participants = b"".join(bytes(12) + p for p in self.participants)
        encoded = (
            word(self.chain_id) + word(96) + word(self.channel_nonce) + word(len(self.participants)) + participants
        )
        object.__setattr__(self, "channel_id", ChannelId(keccak(encoded)))

    def require_ours(self, adjudicator: Address, chain_id: int, shortest_challenge_s: int) -> None:
        """The limits of channels that this node opens. Raises PeerFault CHANNEL_TERMS."""
        if len(self.participants) != 2 or not ZERO_ADDRESS < self.participants[0] < self.participants[1]:
            raise PeerFault(Code.CHANNEL_TERMS, "a channel has two distinct participants in ascending order")
        if self.app_definition != adjudicator:
            raise PeerFault(Code.CHANNEL_TERMS, "appDefinition must be the Adjudicator of this deployment")
        if self.chain_id != chain_id:
            raise PeerFault(Code.CHANNEL_TERMS, f"chainId must be {chain_id}")
        if not shortest_challenge_s <= self.challenge_duration_s <= MAX_CHALLENGE_DURATION_S:
            raise PeerFault(
                Code.CHANNEL_TERMS,
                f"challengeDuration must be between {shortest_challenge_s} (the windows of the terms) and"
                f" {MAX_CHALLENGE_DURATION_S} seconds",
            )

    def index_of(self, address: Address) -> int:
        """0 or 1 (A or B). Raises PeerFault CHANNEL_UNKNOWN for an address that is not a participant."""
        try:
            return self.participants.index(address)
        except ValueError:
            raise PeerFault(Code.CHANNEL_UNKNOWN, "not a participant of this channel") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariablePart:
    """What a turn changes: the encoded outcome and the application's bytes."""

    outcome: bytes
    app_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One state, with every hash that a signature covers."""

    fixed: FixedPart
    turn: int
    is_final: bool
    variable: VariablePart
    app_part_hash: Hash = field(init=False, compare=False, repr=False)
    outcome_hash: Hash = field(init=False, compare=False, repr=False)
    state_hash: Hash = field(init=False, compare=False, repr=False)
    digest: Hash = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.turn <= UINT48_MAX:
            raise PeerFault(Code.ENCODING, "turnNum must fit uint48")
        fixed = self.fixed
        app_part = word(fixed.challenge_duration_s) + bytes(12) + fixed.app_definition + word(96)
        app_part_hash = Hash(keccak(app_part + padded(self.variable.app_data)))
        outcome_hash = Hash(keccak(self.variable.outcome))
        header = word(self.turn) + word(int(self.is_final)) + fixed.channel_id
        state_hash = Hash(keccak(header + app_part_hash + outcome_hash))
        object.__setattr__(self, "app_part_hash", app_part_hash)
        object.__setattr__(self, "outcome_hash", outcome_hash)
        object.__setattr__(self, "state_hash", state_hash)
        object.__setattr__(self, "digest", eth_sign_digest(state_hash))


@dataclass(frozen=True, slots=True, kw_only=True)
class CosignedState:
    """A state with the signatures of both participants, in participant order."""

    state: State
    signatures: tuple[bytes, bytes]
