"""The embedded chain as a process: `python -m devnet.chain --port 0 --chain-id 31337 --block-time 1.0`.

Purpose: an Ethereum JSON-RPC endpoint on 127.0.0.1 that needs Python only. When it listens, it prints one JSON line
`{"url": …, "chainId": …}`; with --ready-file, the same line also appears in that file, all at once. SIGTERM and SIGINT
end it with status 0.

Invariants:
- the machine (`devnet.evm`) runs in one worker thread; the event loop keeps answering while it works;
- one block per block time, with or without transactions: confirmations advance by themselves. With --block-time 0
  only `evm_mine` mines;
- bodies, batches and the queue to the worker are bounded; a failure is a JSON-RPC error and never a traceback.

Beside the eth_ methods: evm_increaseTime(seconds), evm_mine(count), devnet_fund(address, wei),
devnet_reorg(depth, keepTransactions).
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from devnet.evm import BLOCK_GAS_LIMIT, TIP_WEI, Call, Evm
from devnet.wire import SERVER_ERROR, RpcError, invalid, parse_bytes, parse_int, quantity, to_hex

BODY_MAX_BYTES = 4 * 1024 * 1024
BATCH_MAX = 1_024
QUEUE_MAX = 512  # requests that wait for the worker
FEE_HISTORY_MAX = 256  # blocks
INCREASE_MAX_S = 10 * 365 * 86_400

_Params = list[object]


def _argument(params: _Params, index: int, what: str) -> object:
    if index >= len(params):
        raise invalid(f"parameter {index + 1} ({what}) is missing")
    return params[index]


def _option(params: _Params, index: int, default: object) -> object:
    return params[index] if index < len(params) else default


def _amount(value: object) -> int:
    """Wei, seconds or counts: an integer, or a 0x quantity."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_int(value)


def _call_object(value: object) -> Call:
    if not isinstance(value, dict):
        raise invalid("the call must be an object")
    data = value.get("input", value.get("data"))
    to = value.get("to")
    sender = value.get("from")
    gas = value.get("gas")
    amount = value.get("value")
    return Call(
        sender=bytes(20) if sender is None else parse_bytes(sender, 20),
        to=b"" if to is None else parse_bytes(to, 20),
        data=b"" if data is None else parse_bytes(data),
        value=0 if amount is None else parse_int(amount),
        gas=BLOCK_GAS_LIMIT if gas is None else min(parse_int(gas), BLOCK_GAS_LIMIT),
    )


class Methods:
    """JSON-RPC methods over one `Evm`. Everything here runs in the worker thread."""

    def __init__(self, evm: Evm) -> None:
        self.evm = evm
        self.table: dict[str, Callable[[_Params], object]] = {
            "web3_clientVersion": lambda _: "xln-devnet/py-evm",
            "net_version": lambda _: str(evm.chain_id),
            "eth_chainId": lambda _: quantity(evm.chain_id),
            "eth_syncing": lambda _: False,
            "eth_accounts": lambda _: [],
            "eth_blockNumber": lambda _: quantity(evm.height),
            "eth_gasPrice": lambda _: quantity(evm.base_fee_wei + TIP_WEI),
            "eth_maxPriorityFeePerGas": lambda _: quantity(TIP_WEI),
            "eth_feeHistory": self.fee_history,
            "eth_getBalance": self.get_balance,
            "eth_getCode": self.get_code,
            "eth_getStorageAt": self.get_storage,
            "eth_getTransactionCount": self.get_transaction_count,
            "eth_getBlockByNumber": self.get_block_by_number,
            "eth_getBlockByHash": self.get_block_by_hash,
            "eth_getTransactionByHash": lambda p: evm.transaction_json(parse_bytes(_argument(p, 0, "hash"), 32)),
            "eth_getTransactionReceipt": lambda p: evm.receipt_json(parse_bytes(_argument(p, 0, "hash"), 32)),
            "eth_getLogs": self.get_logs,
            "eth_call": lambda p: to_hex(evm.call(_call_object(_argument(p, 0, "call")), _option(p, 1, "latest"))),
            "eth_estimateGas": lambda p: quantity(
                evm.estimate_gas(_call_object(_argument(p, 0, "call")), _option(p, 1, "latest"))
            ),
            "eth_sendRawTransaction": lambda p: to_hex(evm.send_raw(parse_bytes(_argument(p, 0, "transaction")))),
            "evm_increaseTime": self.increase_time,
            "evm_mine": self.mine,
            "devnet_fund": lambda p: to_hex(
                evm.fund(parse_bytes(_argument(p, 0, "address"), 20), _amount(_argument(p, 1, "wei")))
            ),
            "devnet_reorg": self.reorg,
        }

    def get_balance(self, params: _Params) -> str:
        address = parse_bytes(_argument(params, 0, "address"), 20)
        return quantity(self.evm.state(_option(params, 1, "latest")).get_balance(address))

    def get_code(self, params: _Params) -> str:
        address = parse_bytes(_argument(params, 0, "address"), 20)
        return to_hex(self.evm.state(_option(params, 1, "latest")).get_code(address))

    def get_storage(self, params: _Params) -> str:
        address, slot = parse_bytes(_argument(params, 0, "address"), 20), parse_int(_argument(params, 1, "slot"))
        value = self.evm.state(_option(params, 2, "latest")).get_storage(address, slot)
        return to_hex(value.to_bytes(32, "big"))

    def get_transaction_count(self, params: _Params) -> str:
        address, block = parse_bytes(_argument(params, 0, "address"), 20), _option(params, 1, "latest")
        return quantity(self.evm.nonce(address, block, pending=block == "pending"))

    def get_block_by_number(self, params: _Params) -> object:
        try:
            number = self.evm.resolve(_argument(params, 0, "block"))
        except RpcError as error:
            if error.code == SERVER_ERROR:  # a block that is not there yet is null, not an error
                return None
            raise
        return self.evm.block_json(number, full=_option(params, 1, False) is True)

    def get_block_by_hash(self, params: _Params) -> object:
        number = self.evm.number_of(parse_bytes(_argument(params, 0, "hash"), 32))
        return None if number is None else self.evm.block_json(number, full=_option(params, 1, False) is True)

    def get_logs(self, params: _Params) -> object:
        criteria = _argument(params, 0, "filter")
        if not isinstance(criteria, dict):
            raise invalid("the filter must be an object")
        return self.evm.logs(criteria)

    def fee_history(self, params: _Params) -> object:
        count = min(_amount(_argument(params, 0, "block count")), FEE_HISTORY_MAX)
        newest = self.evm.resolve(_option(params, 1, "latest"))
        percentiles = _option(params, 2, None)
        headers = [self.evm.header(n) for n in range(max(0, newest - count + 1), newest + 1)]
        following = self.evm.base_fee_wei if newest == self.evm.height else self.evm.header(newest + 1).base_fee_per_gas
        answer: dict[str, object] = {
            "oldestBlock": quantity(headers[0].block_number if headers else newest),
            "baseFeePerGas": [quantity(h.base_fee_per_gas) for h in headers] + [quantity(following)],
            "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
        }
        if isinstance(percentiles, list):
            answer["reward"] = [[quantity(TIP_WEI)] * len(percentiles) for _ in headers]
        return answer

    def increase_time(self, params: _Params) -> int:
        seconds = _amount(_argument(params, 0, "seconds"))
        if self.evm.offset_s + seconds > INCREASE_MAX_S:
            raise invalid(f"time moves by at most {INCREASE_MAX_S} seconds in all")
        self.evm.offset_s += seconds
        return self.evm.offset_s

    def mine(self, params: _Params) -> str:
        self.evm.mine_many(_amount(_option(params, 0, 1)))
        return quantity(self.evm.height)

    def reorg(self, params: _Params) -> str:
        self.evm.reorg(_amount(_argument(params, 0, "depth")), _option(params, 1, False) is True)
        return quantity(self.evm.height)

    # requests

    def answer(self, request: object) -> dict[str, Any] | None:
        """The response to one request; None for a notification."""
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, -32600, "a request is an object with jsonrpc, id, method and params")
        request_id, params = request.get("id"), request.get("params", [])
        handler = self.table.get(request["method"])
        if handler is None:
            response = _error(request_id, -32601, f"the method {request['method'][:80]} does not exist here")
        elif not isinstance(params, list):
            response = _error(request_id, -32602, "params must be an array")
        else:
            try:
                response = {"jsonrpc": "2.0", "id": request_id, "result": handler(params)}
            except RpcError as error:
                response = _error(request_id, error.code, error.message, error.data)
            except Exception as error:  # noqa: BLE001  the machine's own failures: told to the client, the chain goes on
                response = _error(request_id, -32603, f"internal error: {type(error).__name__}: {error}")
        return response if "id" in request else None

    def answer_body(self, body: bytes) -> bytes:
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _dump(_error(None, -32700, "the body is not JSON"))
        if not isinstance(parsed, list):
            response = self.answer(parsed)
            return b"" if response is None else _dump(response)
        if not 1 <= len(parsed) <= BATCH_MAX:
            return _dump(_error(None, -32600, f"a batch has between 1 and {BATCH_MAX} requests"))
        responses = [response for request in parsed if (response := self.answer(request)) is not None]
        return _dump(responses) if responses else b""


def _error(request_id: object, code: int, message: str, data: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()  # unlike orjson, takes ints above 64 bits


class Server:
    """HTTP in the event loop, the machine in one worker thread."""

    def __init__(self, *, chain_id: int, block_time_s: float) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evm")
        self._chain_id = chain_id
        self._block_time_s = block_time_s
        self._waiting = 0
        self._evm: Evm | None = None
        self._methods: Methods | None = None

    async def run(self, port: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:
        """Serves until `stop` is set. Calls `ready` with the URL once it listens. Raises OSError when it cannot."""
        loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=BODY_MAX_BYTES)
        app.router.add_post("/", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        try:
            await runner.setup()
            self._evm = await loop.run_in_executor(self._worker, Evm, self._chain_id)
            self._methods = Methods(self._evm)
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            ready(f"http://127.0.0.1:{runner.addresses[0][1]}")
            await self._mine_until(stop)
        finally:
            await runner.cleanup()
            self._worker.shutdown(wait=True, cancel_futures=True)

    async def _mine_until(self, stop: asyncio.Event) -> None:
        """One block per block time; blocks that took longer than that to mine are not made up for."""
        assert self._evm is not None
        if self._block_time_s == 0:
            await stop.wait()
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + self._block_time_s
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, due - loop.time()))
                return
            await loop.run_in_executor(self._worker, self._evm.mine)
            due = max(due + self._block_time_s, loop.time())

    async def _handle(self, request: web.Request) -> web.Response:
        assert self._methods is not None
        body = await request.read()
        if self._waiting >= QUEUE_MAX:
            refusal = _dump(_error(None, -32005, f"{QUEUE_MAX} requests wait already; try again"))
            return web.Response(body=refusal, status=429, content_type="application/json")
        self._waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._worker, self._methods.answer_body, body)
        finally:
            self._waiting -= 1
        return web.Response(body=answer, content_type="application/json")


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m devnet.chain", description="A local Ethereum chain, in memory.")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--chain-id", type=int, default=31337)
    parser.add_argument(
        "--block-time", type=float, default=1.0, metavar="SECONDS", help="0: blocks only when evm_mine asks for them"
    )
    parser.add_argument("--ready-file", type=Path, metavar="PATH", help="write the line with the URL here as well")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port <= 65_535:
        parser.error("--port is between 0 and 65535")
    if not 1 <= arguments.chain_id < 2**53:
        parser.error("--chain-id is between 1 and 2^53 - 1")
    if arguments.block_time != 0 and not 0.05 <= arguments.block_time <= 3_600:
        parser.error("--block-time is 0, or between 0.05 and 3600 seconds")
    return arguments


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def ready(url: str) -> None:
        line = json.dumps({"url": url, "chainId": arguments.chain_id})
        if arguments.ready_file is not None:
            partial = arguments.ready_file.with_name(arguments.ready_file.name + ".partial")
            partial.write_text(line + "\n", encoding="utf-8")
            partial.replace(arguments.ready_file)  # whoever waits for the file never reads half of it
        with suppress(BrokenPipeError):
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    await Server(chain_id=arguments.chain_id, block_time_s=arguments.block_time).run(arguments.port, ready, stop)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse_arguments(argv)
    try:
        asyncio.run(_serve(arguments))
    except OSError as error:
        sys.stderr.write(f"devnet.chain: cannot serve on 127.0.0.1:{arguments.port}: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
