"""A process that sends back what it gets, over WebSocket and over HTTP: what a round trip costs on this machine.

Run as a child by `bench.limits`; announces its two URLs. It uses the same libraries as the node, with nothing of ours.
"""

import asyncio

from aiohttp import web
from websockets.asyncio.server import ServerConnection, serve

from node.process import announce

LIFE_S = 300.0  # it is ended long before


async def _echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def _post(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="application/json")


async def main() -> None:
    app = web.Application()
    app.router.add_post("/echo", _post)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with serve(_echo, "127.0.0.1", 0, compression=None) as server:
        http_port = runner.addresses[0][1]
        ws_port = next(iter(server.sockets)).getsockname()[1]
        announce(ws=f"ws://127.0.0.1:{ws_port}", http=f"http://127.0.0.1:{http_port}/echo")
        await asyncio.sleep(LIFE_S)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
