"""Real processes: supervision under signals, children that are started, ended, killed, and never orphaned."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from channel.errors import Code, LocalRefusal
from node.process import Child, Children

PROGRAM = """
import asyncio, os, signal, subprocess, sys, time
from pathlib import Path
from channel.errors import Code, PeerFault
from node import logs, process, supervise

async def main(stop):
    how = sys.argv[1]
    if how == "refuse":
        raise PeerFault(Code.CONFIG, "the port is wrong")
    if how == "bug":
        async with asyncio.TaskGroup() as group:
            group.create_task(bug())
    if how == "slow":
        await asyncio.sleep(60)
    if how == "grandchild":
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        process.announce(grandchild=grandchild.pid)
    else:
        print("noise")
        process.announce(pid=os.getpid(), cwd=os.getcwd(), value=os.environ.get("VALUE"))
    if how == "file":
        Path("ready").touch()
    if how == "parent":
        child = await process.Child.start("inner", "program", ["serve"], folder=Path("inner"))
        Path("inner.pid").write_text(str(child.pid))
    if how == "stubborn":
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("not yet", flush=True)
    if how == "together":
        await supervise.together(stop, asyncio.sleep(60), asyncio.sleep(0.01))
        return 4
    await stop.wait()
    print("stopped by", stop.reason, flush=True)
    return 3

async def bug():
    raise RuntimeError("oops")

if __name__ == "__main__":
    logs.configure("info", path=Path("node.log"))
    supervise.CANCEL_DEADLINE_S = 0.3
    sys.exit(supervise.run(main, stop_deadline_s=0.3))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that the children can import; gives the folder for theirs."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "program.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"
    monkeypatch.undo()


def gone(pid: int) -> bool:
    """Within two seconds the process is gone, or a zombie that nobody has reaped."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


async def test_a_child_is_ready_has_its_folder_and_stops_gracefully(program: Path) -> None:
    child = await Child.start("node", "program", ["serve"], folder=program, env={"VALUE": "7"})
    assert child.ready == {"pid": child.pid, "cwd": str(program), "value": "7"}
    assert child.alive
    assert await child.terminate() == 3
    assert not child.alive
    assert "stopped by SIGTERM" in child.tail()
    assert "stopping" in (program / "node.log").read_text()


async def test_ready_by_a_file(program: Path) -> None:
    (program / "ready").touch()  # left over from a run before
    child = await Child.start("node", "program", ["file"], folder=program, ready_file=program / "ready")
    assert await child.terminate() == 3


async def test_a_child_that_refuses_is_quoted(program: Path) -> None:
    with pytest.raises(LocalRefusal, match=r"status 1 before it was ready(.|\n)*config.invalid: the port is wrong"):
        await Child.start("node", "program", ["refuse"], folder=program)
    assert "Traceback" not in (program / "node.out").read_text()


async def test_a_bug_is_one_line_for_the_user_and_a_traceback_in_the_log(program: Path) -> None:
    with pytest.raises(LocalRefusal, match=r"status 70"):
        await Child.start("node", "program", ["bug"], folder=program)
    assert (program / "node.out").read_text().startswith("error: internal: RuntimeError: oops")
    assert "Traceback" not in (program / "node.out").read_text()
    assert "Traceback" in (program / "node.log").read_text()


async def test_a_child_that_is_never_ready_is_killed(program: Path) -> None:
    with pytest.raises(LocalRefusal, match="not ready within") as caught:
        await Child.start("node", "program", ["slow"], folder=program, deadline_s=1)
    assert caught.value.code is Code.TIMEOUT


async def test_main_that_does_not_stop_is_ended(program: Path) -> None:
    child = await Child.start("node", "program", ["stubborn"], folder=program)
    started = time.monotonic()
    assert await child.terminate(deadline_s=10) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 5
    assert "not yet" in child.tail()


async def test_services_together_end_with_the_request(program: Path) -> None:
    child = await Child.start("node", "program", ["together"], folder=program)
    await asyncio.sleep(0.1)
    assert child.alive
    assert await child.terminate() == 4


async def test_kill9_takes_the_whole_group(program: Path) -> None:
    child = await Child.start("node", "program", ["grandchild"], folder=program)
    grandchild = child.ready["grandchild"]
    assert isinstance(grandchild, int)
    os.kill(grandchild, 0)
    assert await child.kill9() == -signal.SIGKILL
    assert await asyncio.to_thread(gone, grandchild)


async def test_children_end_with_their_block_last_first(program: Path) -> None:
    started: list[Child] = []

    async def job() -> None:
        async with Children() as children:
            for name in ("a", "b"):
                started.append(await children.start(name, "program", ["serve"], folder=program / name))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await job()
    assert [child.returncode for child in started] == [3, 3]
    ended = [child.log_path.stat().st_mtime_ns for child in started]
    assert ended[1] < ended[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes a little longer")
async def test_no_orphan_when_the_parent_is_killed(program: Path) -> None:
    parent = await Child.start("outer", "program", ["parent"], folder=program)
    path = program / "inner.pid"
    for _ in range(200):
        if await asyncio.to_thread(lambda: path.exists() and bool(path.read_text())):
            break
        await asyncio.sleep(0.02)
    inner = int(path.read_text())
    os.kill(inner, 0)
    os.kill(parent.pid, signal.SIGKILL)  # only the parent: the child is in a group of its own anyway
    assert await asyncio.to_thread(gone, inner)
    await parent.kill9()
