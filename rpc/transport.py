"""Connections between nodes: the session core on WebSockets (`websockets`), with bounds and deadlines everywhere.

    async with serve("127.0.0.1", 0, identity, is_known, on_connection) as server: ... server.port
    connection = await connect("ws://127.0.0.1:7001", identity, expected_address)

A `Connection` exists only once its session is established. Invariants:

- one ordered stream each way: `messages()` yields what came in, in the peer's order; `send` keeps the caller's order;
- nothing waits for ever: `send` never waits at all, every other await has a deadline;
- memory is bounded (`rpc.limits`): when the owner does not read, nothing more is read from the peer; when the peer does
  not read, the connection is cut with BUSY;
- a fault that leaves the session intact (no JSON, no JSON-RPC) is answered with an error and the connection stays, at
  most `Limits.faults` times; a limit that is passed, or a frame that does not open, is answered with an error and the
  connection closes: the last sealed frame says why, and so does the reason of the WebSocket close frame, as
  "label: text".

Answers to `request` (their ids are text, "r1", "r2", …) go to who asked and are not in the stream; every other response
is. So owners that number their own requests with integers never collide with it.

Source: DESIGN section 5.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.connection import Connection as WebSocket
from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as ws_serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response as HttpResponse

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.signing import Signer
from channel.strictjson import loads
from channel.units import Address, format_address
from rpc import jsonrpc
from rpc.jsonrpc import Batch, Id, Message, Params, RemoteError, Response
from rpc.limits import Limits, TokenBucket
from rpc.session import KEY_BYTES, NONCE_BYTES, SEAL_BYTES, Established, Failed, Network, Payload, Role, Session

log = logging.getLogger("xln.rpc")
_ws_log = logging.getLogger("xln.rpc.websocket")
# Every port scan would be a traceback: what matters of a connection that fails is logged here, in a line.
_ws_log.setLevel(logging.CRITICAL)

DEFAULT_LIMITS = Limits()
IsKnown = Callable[[Address], bool]
OnConnection = Callable[["Connection"], Awaitable[None]]

_MAX_REASON_BYTES = 120  # a close frame takes 123
_WS_QUEUE_FRAMES = 4
_BY_LABEL = {code.label: code for code in Code}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, and on which network."""

    signer: Signer
    chain_id: int
    adjudicator: Address
    network: Network = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", Network(self.chain_id, self.adjudicator))

    @property
    def address(self) -> Address:
        return self.signer.address


class Connection:
    """An established session with one peer. Made by `connect` and `serve`."""

    def __init__(
        self,
        ws: WebSocket,
        session: Session,
        established: Established,
        *,
        dialled: bool,
        limits: Limits,
        bucket: TokenBucket,
    ) -> None:
        """Starts the tasks of the connection; `wait_closed` and `close` end with them."""
        self.peer: Address = established.peer
        self.version: int = established.version
        self.dialled = dialled
        self.limits = limits
        self.failure: XlnError | None = None
        """Why the connection ended: ours, or a RemoteError; None while it is open, or when it was closed in peace."""
        self._ws = ws
        self._session = session
        self._bucket = bucket
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[tuple[Message, int]] = deque()
        self._inbox_bytes = 0
        self._inbox_changed = asyncio.Event()
        self._inbox_room = asyncio.Event()
        self._inbox_ended = False
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._outbox_changed = asyncio.Event()
        self._pending: dict[Id, asyncio.Future[Response]] = {}
        self._next_request = 1
        self._faults = 0
        self._stopping = asyncio.Event()
        self._close_code: int = CloseCode.NORMAL_CLOSURE
        self._close_reason = ""
        self._task = self._loop.create_task(self._run(), name=f"connection {format_address(self.peer)}")

    def __repr__(self) -> str:
        state = "closing" if self._stopping.is_set() else "open"
        return f"Connection({format_address(self.peer)}, {'dialled' if self.dialled else 'accepted'}, {state})"

    @property
    def is_open(self) -> bool:
        return not self._stopping.is_set()

    # out

    async def send(self, payload: bytes | str) -> None:
        """Queues one frame (a built JSON text). Never waits.

        Raises LocalRefusal PEER_UNAVAILABLE when closed, FRAME_TOO_LARGE (the connection stays), or BUSY: the peer
        takes less than is sent to it, and the connection is cut.
        """
        self.send_nowait(payload)

    def send_nowait(self, payload: bytes | str) -> None:
        """As `send`, for callers that are not coroutines."""
        data = payload.encode() if isinstance(payload, str) else payload
        if self._stopping.is_set():
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the connection to {format_address(self.peer)} is closed")
        if len(data) > self.limits.frame_bytes:
            raise LocalRefusal(
                Code.FRAME_TOO_LARGE, f"a frame may have {self.limits.frame_bytes} bytes, not {len(data)}"
            )
        if len(self._outbox) >= self.limits.outbox_messages or (
            self._outbox and self._outbox_bytes + len(data) > self.limits.outbox_bytes
        ):
            error = LocalRefusal(Code.BUSY, f"{format_address(self.peer)} takes frames slower than they are sent")
            self._stop(error)
            raise error
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        self._outbox_changed.set()

    async def request(self, method: str, params: Params, timeout_s: float) -> object:
        """The result of a call. Raises RemoteError, or LocalRefusal TIMEOUT, PEER_UNAVAILABLE or BUSY.

        The answer is read by the connection itself, so that the owner may await it while reading `messages()`; but
        not while the inbox is full: then it times out.
        """
        if len(self._pending) >= self.limits.pending_requests:
            raise LocalRefusal(Code.BUSY, f"{len(self._pending)} requests already wait for an answer")
        identity = f"r{self._next_request}"
        self._next_request += 1
        future: asyncio.Future[Response] = self._loop.create_future()
        self._pending[identity] = future
        try:
            self.send_nowait(jsonrpc.request(identity, method, params))
            async with asyncio.timeout(timeout_s):
                response = await future
        except TimeoutError as error:
            peer = format_address(self.peer)
            raise LocalRefusal(Code.TIMEOUT, f"{peer} did not answer {method} within {timeout_s} s") from error
        finally:
            self._pending.pop(identity, None)
        return response.unwrap()

    async def notify(self, method: str, params: Params) -> None:
        self.send_nowait(jsonrpc.notification(method, params))

    async def respond(self, identity: Id, result: object) -> None:
        self.send_nowait(jsonrpc.response(identity, result))

    async def respond_error(self, identity: Id | None, error: XlnError) -> None:
        self.send_nowait(jsonrpc.error_response(identity, error))

    async def ping(self, timeout_s: float) -> bool:
        """Whether the other side's machine answers, below JSON-RPC."""
        try:
            async with asyncio.timeout(timeout_s):
                await (await self._ws.ping())
        except (TimeoutError, ConnectionClosed):
            return False
        return True

    # in

    async def messages(self) -> AsyncIterator[Message]:
        """What came in, in order. Ends when the connection has ended and everything was yielded. For one reader."""
        while True:
            while not self._inbox:
                if self._inbox_ended:
                    return
                self._inbox_changed.clear()
                await self._inbox_changed.wait()
            message, size = self._inbox.popleft()
            self._inbox_bytes -= size
            self._inbox_room.set()
            yield message

    # the end

    async def close(self, code: Code | None = None, reason: str = "") -> None:
        """Closes, telling the peer `code` and `reason`; without a code, in peace. Returns when it is closed.

        What is still in the outbox is dropped.
        """
        if not self._stopping.is_set() and code is None:
            self._close_reason = reason
        self._stop(None if code is None else LocalRefusal(code, reason))
        await self.wait_closed()

    async def wait_closed(self) -> None:
        # Shielded: who waits may be cancelled, the connection's own end is never.
        await asyncio.shield(self._task)

    def _stop(self, failure: XlnError | None) -> None:
        if not self._stopping.is_set():
            self.failure = failure
            self._stopping.set()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = (group.create_task(self._read()), group.create_task(self._write()))
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._stopping.set()
            try:
                await self._say_goodbye()
            finally:
                self._outbox.clear()
                self._inbox_ended = True
                self._inbox_changed.set()
                gone = LocalRefusal(Code.PEER_UNAVAILABLE, f"the connection to {format_address(self.peer)} closed")
                for future in self._pending.values():
                    if not future.done():
                        future.set_exception(gone)

    async def _say_goodbye(self) -> None:
        if self.failure is not None and not isinstance(self.failure, RemoteError):
            with contextlib.suppress(LocalRefusal):  # the session itself has failed: it has its own last word
                self._session.send(jsonrpc.error_response(None, self.failure))
            self._close_code = CloseCode.POLICY_VIOLATION
            self._close_reason = _reason(self.failure)
        await _flush_and_close(self._ws, self._session, self._close_code, self._close_reason, self.limits)

    async def _write(self) -> None:
        outbox = self._outbox
        try:
            while True:
                while not outbox:
                    self._outbox_changed.clear()
                    await self._outbox_changed.wait()
                data = outbox.popleft()
                self._outbox_bytes -= len(data)
                self._session.send(data)
                async with asyncio.timeout(self.limits.write_timeout_s):
                    for message in self._session.data_to_send():
                        await self._ws.send(message)
        except ConnectionClosed as closed:
            self._stop(_failure_of(closed))
        except TimeoutError:
            peer = format_address(self.peer)
            self._stop(LocalRefusal(Code.BUSY, f"{peer} took no frame within {self.limits.write_timeout_s} s"))

    async def _read(self) -> None:
        session = self._session
        try:
            while True:
                session.receive_data(await self._ws.recv())
                for event in session.events_received():
                    match event:
                        case Payload(data=data):
                            await self._take(data)
                        case Failed(error=error):
                            raise error
        except ConnectionClosed as closed:
            self._stop(_failure_of(closed))
        except XlnError as error:
            self._stop(error)

    async def _take(self, data: bytes) -> None:
        """One frame: answers are handed to who waits for them, the rest to the inbox. Raises what ends it all."""
        value: object = None
        try:
            value = loads(data, max_bytes=self.limits.frame_bytes)
            message = jsonrpc.parse(value, max_batch=self.limits.batch)
        except PeerFault as error:
            self._charge(1)
            if error.code is Code.BATCH_TOO_LARGE or self._faults >= self.limits.faults:
                raise
            self._faults += 1
            with contextlib.suppress(LocalRefusal):
                self.send_nowait(jsonrpc.error_response(jsonrpc.id_of_call(value), error))
            return
        match message:
            case Response():
                self._charge(1)
                if self._settle(message):
                    return
            case Batch(items=items):
                self._charge(len(items))
                rest = tuple([item for item in items if not (isinstance(item, Response) and self._settle(item))])
                if not rest:
                    return
                message = Batch(items=rest)
            case _:
                self._charge(1)
        inbox, limits = self._inbox, self.limits
        while inbox and (len(inbox) >= limits.inbox_messages or self._inbox_bytes + len(data) > limits.inbox_bytes):
            self._inbox_room.clear()
            await self._inbox_room.wait()
        inbox.append((message, len(data)))
        self._inbox_bytes += len(data)
        self._inbox_changed.set()

    def _charge(self, count: int) -> None:
        if not self._bucket.take(count, self._loop.time()):
            raise PeerFault(Code.RATE_LIMIT, f"more than {self.limits.messages_per_s} messages a second")

    def _settle(self, response: Response) -> bool:
        """Whether the response was for a `request` that waits."""
        future = self._pending.get(response.id) if response.id is not None else None
        if future is None:
            return False
        if not future.done():
            future.set_result(response)
        return True


class Server:
    """A listening port. Made by `serve`."""

    def __init__(
        self, identity: Identity, is_known: IsKnown, on_connection: OnConnection, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._identity = identity
        self._is_known = is_known
        self._on_connection = on_connection
        self._limits = limits
        self._connections = 0
        self._handshakes = 0
        self._buckets: dict[Address, TokenBucket] = {}  # grows with the peers that are known, not with who calls
        self._open: set[Connection] = set()
        self._closing = False
        self._ws_server: WebSocketServer | None = None

    @property
    def port(self) -> int:
        assert self._ws_server is not None
        port: int = self._ws_server.sockets[0].getsockname()[1]
        return port

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[Self]:
        limits = self._limits
        async with ws_serve(
            self._handle,
            host,
            port,
            compression=None,
            max_size=limits.frame_bytes + SEAL_BYTES,
            max_queue=_WS_QUEUE_FRAMES,
            open_timeout=limits.connect_timeout_s,
            close_timeout=limits.close_timeout_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            process_request=self._admit,
            server_header=None,
            create_connection=_ServerConnection,
            logger=_ws_log,
        ) as ws_server:
            self._ws_server = ws_server
            try:
                yield self
            finally:
                # Before the library closes them: it has no deadline for a peer that does not read.
                self._closing = True
                await asyncio.gather(*(connection.close() for connection in self._open))

    def _admit(self, ws: ServerConnection, request: HttpRequest) -> HttpResponse | None:
        del request
        if self._closing:
            return ws.respond(503, "node.busy: shutting down\n")
        if self._connections >= self._limits.connections or self._handshakes >= self._limits.handshakes:
            return ws.respond(503, "node.busy: too many connections\n")
        return None

    async def _handle(self, ws: ServerConnection) -> None:
        self._connections += 1
        try:
            connection = await self._establish(ws)
            if connection is None:
                return
            self._open.add(connection)
            try:
                await self._on_connection(connection)
            except Exception:
                log.exception("the handler of a connection failed", extra={"peer": format_address(connection.peer)})
                raise
            finally:
                self._open.discard(connection)
                await connection.close()
        finally:
            self._connections -= 1

    async def _establish(self, ws: ServerConnection) -> Connection | None:
        session = Session(
            role=Role.LISTENER,
            signer=self._identity.signer,
            network=self._identity.network,
            nonce=secrets.token_bytes(NONCE_BYTES),
            ephemeral_secret=secrets.token_bytes(KEY_BYTES),
            is_known=self._is_known,
            max_payload_bytes=self._limits.frame_bytes,
        )
        self._handshakes += 1
        try:
            established = await _shake_hands(ws, session, self._limits)
        except XlnError as error:
            log.info("inbound session refused: %s", error, extra={"remote": str(ws.remote_address)})
            return None
        finally:
            self._handshakes -= 1
        bucket = self._buckets.get(established.peer)
        if bucket is None:
            bucket = self._buckets[established.peer] = _bucket(self._limits)
        return Connection(ws, session, established, dialled=False, limits=self._limits, bucket=bucket)


def serve(
    host: str,
    port: int,
    identity: Identity,
    is_known: IsKnown,
    on_connection: OnConnection,
    limits: Limits = DEFAULT_LIMITS,
) -> contextlib.AbstractAsyncContextManager[Server]:
    """Listens on host and port (0: any; then `.port`). `on_connection` has the connection until it returns.

    It must return when the connection ends. What it raises is logged, and closes the connection. Leaving the context
    closes all.
    """
    return Server(identity, is_known, on_connection, limits).listening(host, port)


async def connect(
    url: str,
    identity: Identity,
    expected: Address,
    limits: Limits = DEFAULT_LIMITS,
) -> Connection:
    """An established connection to `expected`, who listens at `url` (ws:// or wss://).

    Raises LocalRefusal PEER_UNAVAILABLE, TIMEOUT or CONFIG (the url), RemoteError (the other side refuses), or
    PeerFault SESSION_* (what answers is not `expected` on this network).
    """
    ws: ClientConnection
    try:
        ws = await ws_connect(
            url,
            compression=None,
            proxy=None,
            max_size=limits.frame_bytes + SEAL_BYTES,
            max_queue=_WS_QUEUE_FRAMES,
            open_timeout=limits.connect_timeout_s,
            close_timeout=limits.close_timeout_s,
            ping_interval=limits.ping_interval_s,
            ping_timeout=limits.ping_timeout_s,
            create_connection=_ClientConnection,
            logger=_ws_log,
        )
    except InvalidURI as error:
        raise LocalRefusal(Code.CONFIG, f"{url} is no WebSocket URL, such as ws://127.0.0.1:7001") from error
    except TimeoutError as error:
        raise LocalRefusal(Code.TIMEOUT, f"{url} did not answer within {limits.connect_timeout_s} s") from error
    except (OSError, InvalidHandshake, EOFError) as error:
        raise LocalRefusal(Code.PEER_UNAVAILABLE, f"{url} cannot be reached: {error}") from error
    session = Session(
        role=Role.DIALER,
        signer=identity.signer,
        network=identity.network,
        nonce=secrets.token_bytes(NONCE_BYTES),
        ephemeral_secret=secrets.token_bytes(KEY_BYTES),
        expected=expected,
        max_payload_bytes=limits.frame_bytes,
    )
    established = await _shake_hands(ws, session, limits)
    return Connection(ws, session, established, dialled=True, limits=limits, bucket=_bucket(limits))


def _bucket(limits: Limits) -> TokenBucket:
    return TokenBucket(limits.messages_per_s, limits.burst_messages, asyncio.get_running_loop().time())


async def _shake_hands(ws: WebSocket, session: Session, limits: Limits) -> Established:
    """Runs the session until it is established. Otherwise the socket is closed and an XlnError raised."""
    established: Established | None = None
    try:
        async with asyncio.timeout(limits.hello_timeout_s):
            while established is None:
                for message in session.data_to_send():
                    await ws.send(message)
                session.receive_data(await ws.recv())
                for event in session.events_received():
                    match event:
                        case Established():
                            established = event
                        case Failed(error=error):
                            raise error
            for message in session.data_to_send():
                await ws.send(message)
    except TimeoutError as error:
        late = LocalRefusal(Code.TIMEOUT, f"no session within {limits.hello_timeout_s} s")
        session.fail(late)
        await _flush_and_close(ws, session, CloseCode.POLICY_VIOLATION, _reason(late), limits)
        raise late from error
    except XlnError as error:
        await _flush_and_close(ws, session, CloseCode.POLICY_VIOLATION, _reason(error), limits)
        raise
    except ConnectionClosed as closed:
        failure = _failure_of(closed) or LocalRefusal(Code.PEER_UNAVAILABLE, "the other side closed during the hello")
        raise failure from closed
    except BaseException:
        ws.transport.abort()
        raise
    return established


async def _flush_and_close(ws: WebSocket, session: Session, code: int, reason: str, limits: Limits) -> None:
    """Sends the last words and closes. A peer that does not take them is cut after `close_timeout_s`."""
    # A peer that floods us would otherwise keep its own answer to the close frame from arriving.
    discarding = asyncio.create_task(_discard(ws))
    try:
        async with asyncio.timeout(limits.close_timeout_s):
            for message in session.data_to_send():
                await ws.send(message)
            await ws.close(code, reason)
    except (ConnectionClosed, TimeoutError):
        ws.transport.abort()
    except BaseException:
        ws.transport.abort()
        raise
    finally:
        discarding.cancel()
        await asyncio.wait([discarding])


async def _discard(ws: WebSocket) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await ws.recv()


def _reason(error: XlnError) -> str:
    return str(error).encode()[:_MAX_REASON_BYTES].decode(errors="ignore")


def _failure_of(closed: ConnectionClosed) -> XlnError | None:
    """Why the other side, or the network, ended the connection. None when it was closed in peace."""
    sent = closed.sent
    if sent is not None and sent.code == CloseCode.MESSAGE_TOO_BIG and not closed.rcvd_then_sent:
        return PeerFault(Code.FRAME_TOO_LARGE, sent.reason.partition(": ")[2])
    if closed.rcvd is None:
        return LocalRefusal(Code.PEER_UNAVAILABLE, "the connection broke")
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if code in (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY):
        return None
    label, _, text = reason.partition(": ")
    known = _BY_LABEL.get(label)
    if known is not None:
        return RemoteError(known, text)
    if code == CloseCode.MESSAGE_TOO_BIG:
        return RemoteError(Code.FRAME_TOO_LARGE, reason)
    return RemoteError(Code.PEER_UNAVAILABLE, f"the other side closed with {code} {reason}".rstrip())


def _label_oversize(ws: WebSocket) -> None:
    """Gives the close frame that websockets sends for a frame above `max_size` our stable label.

    It is refused from its header, before its bytes are read, so no code of ours sees it.
    """
    fail = ws.protocol.fail

    def labelled(code: CloseCode | int, reason: str = "") -> None:
        if code == CloseCode.MESSAGE_TOO_BIG:
            reason = f"{Code.FRAME_TOO_LARGE.label}: {reason}"
        fail(code, reason)

    ws.protocol.fail = labelled  # type: ignore[method-assign]


class _ServerConnection(ServerConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _label_oversize(self)


class _ClientConnection(ClientConnection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _label_oversize(self)
