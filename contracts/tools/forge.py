"""Run forge from node_modules with the given arguments, and end with forge's own exit status.

    python contracts/tools/forge.py test        unit, fuzz and invariant tests; status 1 when one fails

`node_modules/.bin/forge` must not be used for checks: the npm wrapper of 1.7.1 ends with status 0 whatever forge says,
so that failing tests would pass. This calls the binary of the platform package behind it. The virtual environment's
bin comes first on PATH, so that a Node from PyPI in it is found by the compiler script's `env node`.
"""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
RUN_SECONDS = 900


def run_forge(*arguments: str, capture: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run forge in contracts/. `capture` keeps stdout and stderr. Exits with a sentence when forge is not installed."""
    binaries = sorted((FOLDER / "node_modules" / "@foundry-rs").glob("forge-*/bin/forge*"))
    if not binaries:
        sys.exit("forge is missing: run `npm install --no-save` in contracts/ first")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return subprocess.run(  # noqa: S603
        [str(binaries[0]), *arguments],
        cwd=FOLDER,
        env=os.environ | {"PATH": path},
        capture_output=capture,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


if __name__ == "__main__":
    sys.exit(run_forge(*sys.argv[1:]).returncode)
