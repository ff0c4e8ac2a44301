"""Private files: mode 0600, written whole or not at all, never over an existing one unless asked. Keys, tokens."""

import os
import secrets
import stat
from pathlib import Path

from channel.errors import Code, LocalRefusal, PeerFault

PRIVATE_FILE_BYTES_MAX = 64 * 1024


def write_private(path: Path, data: bytes, *, replace: bool = False, code: Code = Code.CONFIG) -> None:
    """Writes `data` to a file that only its owner can read. The content appears at once and is on the disk on return.

    Raises LocalRefusal `code`: the file is there already and `replace` is not given, or the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)  # unlike a rename, it fails when the name is taken
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError:
        raise LocalRefusal(code, f"{path} is there already and is not overwritten; move it away first") from None
    except OSError as error:
        raise LocalRefusal(code, f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path, *, what: str = "file", code: Code = Code.CONFIG) -> bytes:
    """The content of a file that only its owner can read.

    Raises PeerFault `code`: it is not there, others can read it (the message has the chmod to run), or it is too large.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise PeerFault(code, f"the {what} {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")
            data = file.read(PRIVATE_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise PeerFault(code, f"there is no {what} at {path}") from None
    except OSError as error:
        raise PeerFault(code, f"cannot read the {what} {path}: {error.strerror}") from error
    if len(data) > PRIVATE_FILE_BYTES_MAX:
        raise PeerFault(code, f"the {what} {path} is larger than {PRIVATE_FILE_BYTES_MAX} bytes")
    return data


def sync_directory(path: Path) -> None:
    """Makes the names of new files durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
