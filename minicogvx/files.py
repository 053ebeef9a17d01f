"""Files that are written whole or not at all, and places that are tried before long work starts."""

import os
import re
import secrets
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PART = re.compile(r"\..*\.[0-9a-f]{8}\.part(\..*)?")  # what `written_whole` calls an unfinished file
_TMP = re.compile(r"\.tmp\w{6}")  # and safetensors
_TRIAL_BYTES = 4096  # a full disk takes an empty file, but not these
_LOCK = ".lock"


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it where the block ends well: nobody ever sees half of a file.

    The temporary name is hidden, no other process or thread has it, and it ends as `path` does, for writers that go by
    the ending. Missing folders are made. The file keeps its permissions, and a new one gets the usual ones. Where the
    block fails, the temporary file is removed and what was at `path` stays. Raises OSError that names `path` where
    there is no room, no right to write, or something other than a file.
    """
    path = Path(path)
    with naming(path):
        _refuse_all_but_files(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not the whole name: with the additions it could be longer than the file system allows.
    part = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix[:20]}")
    try:
        with naming(path, part):
            mode = _permissions(path, part)
            yield part
            with suppress(OSError):  # some file systems know no permissions
                os.chmod(part, mode)
            os.replace(part, path)
    finally:
        with naming(path, part):
            part.unlink(missing_ok=True)


def check_writable(path: str | Path, folder: bool = False) -> None:
    """Raises OSError, in one sentence, where `path` cannot be written: a file, or with `folder` a folder of files.

    For the start of a command, so that its work is not lost at the end. A few bytes are written to the folder, or to
    the nearest one above that exists, and removed; what is there already stays as it is, and nothing else is made.
    """
    path = Path(path)
    with naming(path):
        if not folder:
            _refuse_all_but_files(path)
        place = path if folder else path.parent
        while not _exists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise OSError(f"{path} cannot be written: {place} is {'no folder' if _exists(place) else 'not there'}")
        for part in path.relative_to(place).parts:
            _exists(place / part)  # for names that no file can have
        with tempfile.TemporaryFile(dir=place) as trial:
            trial.write(bytes(_TRIAL_BYTES))
            trial.flush()


def remove_parts(folder: Path) -> None:
    """Removes what writers that were killed have left in `folder`, which must be in use by this process alone."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if (_PART.fullmatch(path.name) or _TMP.fullmatch(path.name)) and path.is_file():
            path.unlink()


@contextmanager
def locked(folder: str | Path, instead: str = "name another folder") -> Iterator[None]:
    """Keeps `folder` for this process while the block runs. The folder is made, and removed if it is empty at the end.

    `instead`: what somebody can do who does not want to wait.

    The lock ends with the process, however it dies: none is ever stale. Raises ValueError where another process has
    it, OSError where the folder cannot be made. Where the file system knows no locks, that is said on stderr.
    """
    folder = Path(folder)
    made = not folder.exists()
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked_file(folder / _LOCK, folder, instead)
    try:
        yield
    finally:
        if sys.platform == "win32":  # where an open file cannot be removed, nor one that the next run has taken
            os.close(handle)
            with suppress(OSError):
                (folder / _LOCK).unlink()
        else:
            (folder / _LOCK).unlink(missing_ok=True)
            os.close(handle)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _locked_file(path: Path, folder: Path, instead: str) -> int:
    """A handle of the lock file that is there now: the one before may have been removed while it was waited for."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(handle)
        except (BlockingIOError, PermissionError) as error:  # POSIX, Windows
            holder = os.read(handle, 200).decode(errors="replace").strip() if sys.platform != "win32" else ""
            os.close(handle)
            raise ValueError(f"{folder} is in use by another run{holder and f' ({holder})'}; wait for it to end, or "
                             f"{instead}") from error
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}); see to it that no other run writes to it",
                  file=sys.stderr)
        if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)


def _take(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _exists(path: Path) -> bool:
    """As `os.path.lexists`, which is silent about names that are too long and folders that may not be looked into."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _permissions(path: Path, part: Path) -> int:
    """Those of the file at `path`, or what a new one gets there: some writers make files that only they may read."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(path.stat().st_mode)
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        part.unlink()


@contextmanager
def naming(path: Path, part: Path | None = None) -> Iterator[None]:
    """Lets what the system says of `part`, or of no file, say `path`; a sentence of somebody's own stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno is None or part and error.filename not in (None, str(part)):
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def _refuse_all_but_files(path: Path) -> None:
    """A folder, or a device such as /dev/null, must not be renamed away."""
    if path.is_dir():
        raise OSError(f"{path} cannot be written: it is a folder, and must be a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} cannot be written: it is a device or a pipe, and must be a file")
