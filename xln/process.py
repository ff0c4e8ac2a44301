"""The service as a process: store, chain, brokers' sessions, the operator's port; and their end.

Start: database, chain (it must be there, and name this key), then the watcher up to the head; only then it listens.
Brokers that are registered in XlnCollateral are known peers. Requests of one broker are served in order; attestations,
which take seconds, beside them. A failed disk or a reorganisation below the confirmations ends the process.
"""

import asyncio
import contextlib
from collections.abc import Callable
from secrets import SystemRandom

from aiohttp import web

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.signing import Signer
from channel.units import Address, format_address
from contracts.client import ChainClient, Sender
from contracts.network import Collateral
from contracts.watcher import Poll, Watcher
from node import http, logs
from node.clock import SystemClock
from node.store import Store
from node.supervise import Stop, together
from rpc import jsonrpc
from rpc.jsonrpc import Batch, Envelope, Message, Notification, Request, Response
from rpc.links import Links
from rpc.transport import Connection, Identity
from xln import book as books
from xln.config import DATABASE_FILE, Settings
from xln.service import Service, internal

ATTESTS_MAX = 8  # of one broker at a time
RELEASE_EVERY_S = 5.0
RETRY_MAX_S = 10.0

_log = logs.get("xln.process")
Ready = Callable[[dict[str, object]], None]


async def run(settings: Settings, signer: Signer, stop: Stop, ready: Ready) -> None:
    """Serves until `stop`. `ready` is told {"rpcUrl", "adminUrl", "address"} once it listens.

    Raises LocalRefusal STORAGE, CONFIG or CHAIN when it cannot start.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(settings.folder / DATABASE_FILE, books.MIGRATIONS))
        client = await stack.enter_async_context(await ChainClient.connect(settings.chain_url, settings.chain_id))
        await _require_our_contract(client, settings, signer)
        book = books.load(
            store,
            chain_id=settings.chain_id,
            adjudicator=settings.adjudicator,
            collateral=settings.collateral,
            xln=signer.address,
        )
        await store.commit([books.deployment_statement(book.ledger, signer.address)])
        watcher = Watcher(
            client,
            [settings.collateral, settings.adjudicator, settings.factory, *book.ledger.brokers.values()],
            confirmations=settings.confirmations,
            cursor=book.cursor,
            from_block=settings.from_block,
        )
        service = Service(
            settings=settings,
            signer=signer,
            store=store,
            book=book,
            watcher=watcher,
            sender=Sender(client, signer),
            clock=SystemClock(),
        )
        stack.callback(service.stop)
        chain = _Chain(client, watcher, service, settings)
        while (await chain.step()).behind:
            pass
        await _serve(settings, signer, service, chain, stop, ready)


async def _require_our_contract(client: ChainClient, settings: Settings, signer: Signer) -> None:
    named = await Collateral(client, settings.collateral).xln()
    if named != signer.address:
        raise LocalRefusal(
            Code.CONFIG,
            f"XlnCollateral at {format_address(settings.collateral)} takes the signatures of {format_address(named)},"
            f" and this service's key is {format_address(signer.address)}",
        )


async def _serve(
    settings: Settings, signer: Signer, service: Service, chain: "_Chain", stop: Stop, ready: Ready
) -> None:
    random = SystemRandom()
    async with contextlib.AsyncExitStack() as stack:
        desk = await stack.enter_async_context(Desk(service))
        links = Links(
            Identity(signer, settings.chain_id, settings.adjudicator),
            host=settings.rpc_host,
            port=settings.rpc_port,
            peers={},
            is_known=service.is_known,
            on_up=desk.on_up,
            on_down=desk.on_down,
            on_message=desk.on_message,
            random=random.random,
        )
        await stack.enter_async_context(links.running())
        token = http.new_token()
        app = http.application(http.admin_middleware(token))
        app.router.add_get("/admin/status", _status_handler(service))
        admin_url = await stack.enter_async_context(http.serve(app, settings.admin_host, settings.admin_port))
        stack.enter_context(http.admin_file(settings.folder, admin_url, token))
        host = f"[{settings.rpc_host}]" if ":" in settings.rpc_host else settings.rpc_host
        address = format_address(signer.address)
        ready({"rpcUrl": f"ws://{host}:{links.port}", "adminUrl": admin_url, "address": address})
        _log.info("ready", address=address, rpc_port=links.port, admin=admin_url)
        await together(stop, chain.follow(), _release_for_ever(service))
        service.stop()


def _status_handler(service: Service) -> http.Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return http.json_response(service.status())

    return handler


async def _release_for_ever(service: Service) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_EVERY_S):
                await service.release_wanted.wait()
        service.release_wanted.clear()
        await service.send_releases()


class _Chain:
    """Polls the chain and hands over what is confirmed."""

    def __init__(self, client: ChainClient, watcher: Watcher, service: Service, settings: Settings) -> None:
        self._client = client
        self._watcher = watcher
        self._service = service
        self._pause_s = settings.poll_ms / 1000
        self._timed: int | None = None  # the block whose time was read last
        self._time_s = 0

    async def step(self) -> Poll:
        """One poll. Raises LocalRefusal CHAIN (nothing has changed then), or what ends the process."""
        poll = await self._watcher.poll()
        # From here on nothing may be lost: a chain that does not tell the time leaves the old one.
        with contextlib.suppress(LocalRefusal):
            await self._read_time(poll)
        await self._service.apply(poll, self._time_s)
        return poll

    async def _read_time(self, poll: Poll) -> None:
        number = poll.cursor.number
        if number == self._timed or number < 0:
            return
        block = poll.head if poll.head.hash == poll.cursor.hash else await self._client.block(number)
        if block is not None and block.hash == poll.cursor.hash:
            self._timed, self._time_s = number, block.timestamp

    async def follow(self) -> None:
        failures = 0
        while True:
            try:
                poll = await self._step_or_none()
            except XlnError:
                _log.exception("the chain cannot be followed any more")
                raise
            failures = failures + 1 if poll is None else 0
            if poll is None or not poll.behind:
                await asyncio.sleep(min(RETRY_MAX_S, self._pause_s * 2 ** min(failures, 6)))

    async def _step_or_none(self) -> Poll | None:
        try:
            return await self.step()
        except LocalRefusal as error:
            if error.code is not Code.CHAIN:
                raise
            _log.warning("the chain does not answer", why=error.message)
            return None


class Desk:
    """Serves the brokers' requests. Used as an async context: leaving it ends the attestations under way."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tasks: dict[Address, set[asyncio.Task[None]]] = {}

    async def __aenter__(self) -> "Desk":
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [task for peer in self._tasks.values() for task in peer]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def on_up(self, connection: Connection) -> None:
        pass

    async def on_down(self, peer: Address) -> None:
        pass

    async def on_message(self, connection: Connection, message: Message) -> None:
        match message:
            case Request(method="xln.attest"):
                tasks = self._tasks.setdefault(connection.peer, set())
                if len(tasks) >= ATTESTS_MAX:
                    busy = LocalRefusal(Code.BUSY, f"{ATTESTS_MAX} attestations are under way")
                    self._send(connection, jsonrpc.error_response(message.id, busy))
                    return
                task = asyncio.create_task(self._answer_later(connection, message), name="attest for a broker")
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            case Request():
                self._send(connection, await self._answer(connection.peer, message))
            case Batch(items=items):
                requests = [item for item in items if isinstance(item, Request)]
                answers = [await self._answer(connection.peer, request) for request in requests]
                if answers:
                    self._send(connection, jsonrpc.batch(answers))
            case Envelope():
                fault = PeerFault(Code.METHOD, "XLN takes requests; entries are between brokers")
                self._send(connection, jsonrpc.error_response(None, fault))
            case Notification() | Response():
                pass  # nothing that XLN does is asked for without an answer, and it asks for nothing

    async def _answer_later(self, connection: Connection, request: Request) -> None:
        self._send(connection, await self._answer(connection.peer, request))

    async def _answer(self, peer: Address, request: Request) -> bytes:
        try:
            handler = self._service.methods.get(request.method)
            if handler is None:
                known = ", ".join(self._service.methods)
                raise PeerFault(Code.METHOD, f"there is no such method; there are {known}")
            return jsonrpc.response(request.id, await handler(peer, request.params))
        except (PeerFault, LocalRefusal) as error:
            _log.info("refused", peer=format_address(peer), method=request.method, code=error.code.label)
            return jsonrpc.error_response(request.id, error)
        except Exception as error:  # noqa: BLE001 - a broker must not end the service: it is logged, and answered
            _log.exception("request failed", peer=format_address(peer), method=request.method)
            return jsonrpc.error_response(request.id, internal(error))

    def _send(self, connection: Connection, frame: bytes) -> None:
        try:
            connection.send_nowait(frame)
        except LocalRefusal as error:
            _log.info("answer not sent", peer=format_address(connection.peer), code=error.code.label)
