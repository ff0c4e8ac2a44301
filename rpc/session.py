"""A session between two nodes, without I/O: a mutual signed hello, then sealed frames.

The shell feeds it WebSocket messages (`receive_data`: str for a text message, bytes for a binary one), takes what
happened (`events_received`) and what to send (`data_to_send`), in that order, after every call. It never sees clock or
randomness: nonces and ephemeral keys are arguments and must be fresh for each session.

The hello is a text message, `{"hello": {...}}`, signed by EIP-712 over (from, to, role, versions, nonce, peerNonce,
key) in the domain of the network (chain id, adjudicator). The dialer's has role 0 and peerNonce zero; the listener's
has role 1 and as peerNonce the dialer's nonce, so that an old one is of no use. `key` is an ephemeral X25519 key. The
highest version in both ranges is spoken.

Then every frame is a binary message: a NaCl box (X25519, XSalsa20, Poly1305) under the two ephemeral keys. Its 24-byte
nonce is never sent: a byte for the direction, then the number of the frame in that direction. A frame that is
altered, left out, repeated, taken out of order, or sent back does not open, and ends the session. The dialer's frame 0
is empty: it proves that whoever dialled has the ephemeral key, which who replays a dialer's hello has not. Only then is
the session open for the listener.

    role      state          text message                            binary message
    dialer    HELLO_SENT     listener's hello: OPEN, frame 0 is sent  SESSION_HELLO
    listener  AWAIT_HELLO    dialer's hello: answered, AWAIT_PROOF    SESSION_HELLO
    listener  AWAIT_PROOF    SESSION_SEALED                           frame 0: OPEN
    both      OPEN           SESSION_SEALED                           next frame: Payload
    both      FAILED         ignored                                  ignored

A text message `{"jsonrpc": "2.0", "id": null, "error": {...}}` in any state is the other side's last word: FAILED with
RemoteError, and nothing is answered. In every other case that is not in the table the same kind of message is sent, and
the state is FAILED. Errors, in order of precedence:

    XlnError
     +-- PeerFault
     |    +-- PARSE, DUPLICATE_KEY, NUMBER, FRAME_TOO_LARGE   a hello that is no JSON; a frame above the limit
     |    +-- SESSION_HELLO          its shape, the network, role, addresses, nonces, key, signature
     |    +-- SESSION_VERSION        no version in both ranges
     |    +-- SESSION_UNKNOWN_PEER   well signed by somebody whom the owner does not know
     |    +-- SESSION_SEALED         a frame that does not open, or is not sealed
     +-- LocalRefusal   FRAME_TOO_LARGE, PEER_UNAVAILABLE: `send` of too much, or outside OPEN; the state stays
     +-- RemoteError    what the other side said before it closed

Source: DESIGN section 5; EIP-712; the shape is that of websockets' `protocol.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

from nacl.bindings import crypto_box_beforenm, crypto_box_easy_afternm, crypto_box_open_easy_afternm
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.signing import Signer, require_signer
from channel.strictjson import Fields, dumps, loads
from channel.typed import HELLO, Domain, node_domain
from channel.units import Address, format_address, format_hex
from rpc import jsonrpc

MAX_PAYLOAD_BYTES = 2**20
SEAL_BYTES = 16  # what a box adds
MAX_TEXT_BYTES = 4096  # of a hello or a last word
NONCE_BYTES = 32
KEY_BYTES = 32
SUPPORTED_VERSIONS = (1, 1)
_ZERO_NONCE = bytes(NONCE_BYTES)
_COUNTER_BYTES = 23
_MAX_UINT16 = 2**16 - 1


class Role(IntEnum):
    DIALER = 0
    LISTENER = 1


class State(Enum):
    HELLO_SENT = "hello sent"
    AWAIT_HELLO = "await hello"
    AWAIT_PROOF = "await proof"
    OPEN = "open"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Network:
    """What both sides must be on: their contracts' chain and Adjudicator."""

    chain_id: int
    adjudicator: Address
    domain: Domain = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domain", node_domain(self.chain_id, self.adjudicator))


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """The session is open: who is there, and the protocol version spoken."""

    peer: Address
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The session is over. When `error` is no RemoteError, the other side is being told."""

    error: XlnError


Event = Established | Payload | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hello:
    sender: Address
    recipient: Address
    role: int
    min_version: int
    max_version: int
    nonce: bytes
    peer_nonce: bytes
    key: bytes

    def digest(self, domain: Domain) -> bytes:
        return domain.digest(
            HELLO.hash(
                self.sender,
                self.recipient,
                self.role,
                self.min_version,
                self.max_version,
                self.nonce,
                self.peer_nonce,
                self.key,
            )
        )


class Session:
    """One side of one session. See the module's docstring."""

    def __init__(
        self,
        *,
        role: Role,
        signer: Signer,
        network: Network,
        nonce: bytes,
        ephemeral_secret: bytes,
        expected: Address | None = None,
        is_known: Callable[[Address], bool] = lambda _: True,
        versions: tuple[int, int] = SUPPORTED_VERSIONS,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        """`nonce` and `ephemeral_secret`: 32 random bytes each, never used before. `expected`: whom the dialer dials.

        `is_known` is asked about a peer that has proved its address. A dialer's hello is ready to be sent at once.
        """
        assert len(nonce) == NONCE_BYTES
        assert nonce != _ZERO_NONCE
        assert (expected is None) == (role is Role.LISTENER)
        self.role = role
        self.state = State.AWAIT_HELLO if role is Role.LISTENER else State.HELLO_SENT
        self.peer: Address | None = expected
        self.version: int | None = None
        self._signer = signer
        self._network = network
        self._nonce = nonce
        self._secret = PrivateKey(ephemeral_secret)
        self._is_known = is_known
        self._versions = versions
        self._max_payload_bytes = max_payload_bytes
        self._events: list[Event] = []
        self._outgoing: list[str | bytes] = []
        self._shared_key = b""
        self._sent_count = 0
        self._received_count = 0
        if expected is not None:
            self._say_hello(expected, _ZERO_NONCE)

    def receive_data(self, message: str | bytes) -> None:
        """One WebSocket message. Never raises on what a peer sends."""
        if self.state is State.FAILED:
            return
        try:
            if isinstance(message, str):
                self._receive_text(message)
            else:
                self._receive_binary(message)
        except XlnError as error:
            self.fail(error)

    def send(self, payload: bytes) -> None:
        """Seals `payload` for `data_to_send`. Raises LocalRefusal PEER_UNAVAILABLE or FRAME_TOO_LARGE."""
        if self.state is not State.OPEN:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the session is not open: {self.state.value}")
        if len(payload) > self._max_payload_bytes:
            raise LocalRefusal(
                Code.FRAME_TOO_LARGE, f"a frame may have {self._max_payload_bytes} bytes, not {len(payload)}"
            )
        self._seal(payload)

    def fail(self, error: XlnError) -> None:
        """Ends the session; the other side is told, unless the error is its own last word."""
        if self.state is State.FAILED:
            return
        self.state = State.FAILED
        if not isinstance(error, jsonrpc.RemoteError):
            self._outgoing.append(jsonrpc.error_response(None, error).decode())
        self._events.append(Failed(error=error))

    def events_received(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> list[str | bytes]:
        """Messages to send since the last call, in order: str as text, bytes as binary."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    # text

    def _receive_text(self, text: str) -> None:
        if len(text) > MAX_TEXT_BYTES:
            raise PeerFault(Code.FRAME_TOO_LARGE, f"a hello may have {MAX_TEXT_BYTES} bytes, not {len(text)}")
        value = loads(text, max_bytes=MAX_TEXT_BYTES)
        if isinstance(value, dict) and "error" in value:
            raise _last_word(value)
        match self.state:
            case State.HELLO_SENT:
                self._receive_listener_hello(value)
            case State.AWAIT_HELLO:
                self._receive_dialer_hello(value)
            case _:
                raise PeerFault(Code.SESSION_SEALED, "after the hello every frame is sealed; this one is plain text")

    def _receive_dialer_hello(self, value: object) -> None:
        hello = self._verify_hello(value, Role.DIALER, _ZERO_NONCE)
        self._share_key(hello)
        self.peer = hello.sender
        self._say_hello(hello.sender, hello.nonce)
        self.state = State.AWAIT_PROOF

    def _receive_listener_hello(self, value: object) -> None:
        hello = self._verify_hello(value, Role.LISTENER, self._nonce)
        self._share_key(hello)
        self.state = State.OPEN
        self._seal(b"")
        self._establish()

    def _establish(self) -> None:
        assert self.peer is not None
        assert self.version is not None
        self._events.append(Established(peer=self.peer, version=self.version))

    def _say_hello(self, to: Address, peer_nonce: bytes) -> None:
        low, high = self._versions
        hello = _Hello(
            sender=self._signer.address,
            recipient=to,
            role=self.role,
            min_version=low,
            max_version=high,
            nonce=self._nonce,
            peer_nonce=peer_nonce,
            key=bytes(self._secret.public_key),
        )
        signature = self._signer.sign(hello.digest(self._network.domain))
        wire = {
            "chain": hex(self._network.chain_id),
            "adjudicator": format_address(self._network.adjudicator),
            "from": format_address(hello.sender),
            "to": format_address(to),
            "role": int(self.role),
            "minVersion": low,
            "maxVersion": high,
            "nonce": format_hex(self._nonce),
            "peerNonce": format_hex(peer_nonce),
            "key": format_hex(hello.key),
            "sig": format_hex(signature),
        }
        self._outgoing.append(dumps({"hello": wire}))

    def _verify_hello(self, value: object, role: Role, peer_nonce: bytes) -> _Hello:
        """The other side's hello, from one whom we talk to. Sets the version."""
        try:
            hello, signature = self._read_hello(value)
            self._check_hello(hello, role, peer_nonce)
            require_signer(hello.digest(self._network.domain), signature, hello.sender, "the hello")
        except PeerFault as error:
            raise PeerFault(Code.SESSION_HELLO, error.message) from error
        self.version = min(hello.max_version, self._versions[1])
        if self.version < max(hello.min_version, self._versions[0]):
            raise PeerFault(
                Code.SESSION_VERSION,
                f"you speak versions {hello.min_version} to {hello.max_version}, "
                f"this node {self._versions[0]} to {self._versions[1]}",
            )
        if not self._is_known(hello.sender):
            raise PeerFault(Code.SESSION_UNKNOWN_PEER, f"{format_address(hello.sender)} is no peer of this node")
        return hello

    def _read_hello(self, value: object) -> tuple[_Hello, bytes]:
        outer = Fields(value, "the first message")
        fields = outer.fields("hello")
        outer.done()
        chain_id, adjudicator = fields.quantity("chain"), fields.address("adjudicator")
        if (chain_id, adjudicator) != (self._network.chain_id, self._network.adjudicator):
            raise PeerFault(
                Code.SESSION_HELLO,
                f"wrong network: chain {hex(chain_id)} with adjudicator {format_address(adjudicator)}; this node is on "
                f"chain {hex(self._network.chain_id)} with {format_address(self._network.adjudicator)}",
            )
        hello = _Hello(
            sender=fields.address("from"),
            recipient=fields.address("to"),
            role=fields.integer("role", 0, 1),
            min_version=fields.integer("minVersion", 0, _MAX_UINT16),
            max_version=fields.integer("maxVersion", 0, _MAX_UINT16),
            nonce=fields.hex("nonce", NONCE_BYTES),
            peer_nonce=fields.hex("peerNonce", NONCE_BYTES),
            key=fields.hex("key", KEY_BYTES),
        )
        signature = fields.hex("sig")
        fields.done()
        return hello, signature

    def _check_hello(self, hello: _Hello, role: Role, peer_nonce: bytes) -> None:
        own = self._signer.address
        if hello.role != role:
            raise PeerFault(Code.SESSION_HELLO, f"role must be {int(role)} here, not {hello.role}")
        if hello.recipient != own:
            raise PeerFault(
                Code.SESSION_HELLO,
                f"the hello is to {format_address(hello.recipient)}; this node is {format_address(own)}",
            )
        if hello.sender == own:
            raise PeerFault(Code.SESSION_HELLO, "the hello is from this node itself")
        if self.peer is not None and hello.sender != self.peer:
            raise PeerFault(
                Code.SESSION_HELLO,
                f"{format_address(hello.sender)} answered, not {format_address(self.peer)}",
            )
        if hello.peer_nonce != peer_nonce:
            raise PeerFault(Code.SESSION_HELLO, "peerNonce is not the nonce of the other hello")
        if hello.nonce in (_ZERO_NONCE, self._nonce):
            raise PeerFault(Code.SESSION_HELLO, "nonce must be fresh")

    def _share_key(self, hello: _Hello) -> None:
        try:
            self._shared_key = crypto_box_beforenm(hello.key, bytes(self._secret))
        except CryptoError as error:  # a point of low order: the secret would be known to everybody
            raise PeerFault(Code.SESSION_HELLO, "key is not a usable X25519 key") from error

    # sealed frames

    def _receive_binary(self, sealed: bytes) -> None:
        if self.state in (State.HELLO_SENT, State.AWAIT_HELLO):
            raise PeerFault(Code.SESSION_HELLO, "a session starts with a hello, as a text message")
        if len(sealed) > self._max_payload_bytes + SEAL_BYTES:
            raise PeerFault(
                Code.FRAME_TOO_LARGE,
                f"a frame may have {self._max_payload_bytes} bytes, not {len(sealed) - SEAL_BYTES}",
            )
        sender = Role.LISTENER if self.role is Role.DIALER else Role.DIALER
        try:
            payload = crypto_box_open_easy_afternm(sealed, _box_nonce(sender, self._received_count), self._shared_key)
        except (CryptoError, ValueError) as error:
            raise PeerFault(
                Code.SESSION_SEALED,
                f"frame {self._received_count} does not open: altered, repeated, out of order, or under another key",
            ) from error
        self._received_count += 1
        if self.state is State.OPEN:
            self._events.append(Payload(data=payload))
            return
        if payload:
            raise PeerFault(Code.SESSION_SEALED, "the dialer's first frame must be empty")
        self.state = State.OPEN
        self._establish()

    def _seal(self, payload: bytes) -> None:
        nonce = _box_nonce(self.role, self._sent_count)
        self._sent_count += 1
        self._outgoing.append(crypto_box_easy_afternm(payload, nonce, self._shared_key))


def _box_nonce(sender: Role, count: int) -> bytes:
    return bytes((sender,)) + count.to_bytes(_COUNTER_BYTES, "big")


def _last_word(value: dict[str, Any]) -> XlnError:
    """What the other side says before it closes: a RemoteError, or the fault of not saying it properly."""
    try:
        message = jsonrpc.parse(value)
    except PeerFault as error:
        return PeerFault(Code.SESSION_HELLO, error.message)
    if isinstance(message, jsonrpc.Response) and message.error is not None:
        return jsonrpc.remote_error(message.error)
    return PeerFault(Code.SESSION_HELLO, "a plain text message is a hello, or an error")
