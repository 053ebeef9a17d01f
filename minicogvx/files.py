"""Atomic writing of files, and checks before long work starts that its output can be written."""

import os
import re
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minicogvx.visible import visible

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_PART = re.compile(r"\..*\.[0-9a-f]{8}\.part(\..*)?")  # unfinished files of `written_whole`
_TMP = re.compile(r"\.tmp\w{6}")  # and of safetensors
_NOTES = re.compile(r"\..+\.(jsonl|ndjson|json)\.notes")  # and of captioning
_TRIAL_BYTES = 4096  # an empty file can be written even to a full disk
_LOCK = ".lock"


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block succeeds: the file is never incomplete.

    The temporary name is hidden, unique among processes and threads, and has the ending of `path`, on which some
    writers depend. Missing folders are created. A link stays a link, and the file that it leads to is written. The file
    keeps its permissions; a new one gets the default ones. If the block fails, the temporary file is removed and `path`
    is unchanged. Raises OSError that names `path` for a full disk, missing permissions, a write-protected file, or
    anything that is not a file.
    """
    path = Path(path)
    with naming(path):
        _refuse_unwritable(path)
        real = _real(path)
        real.parent.mkdir(parents=True, exist_ok=True)
    # Truncated: with the additions the name could be too long for the file system.
    part = real.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix[:20]}")
    try:
        with naming(path, part):
            mode = _permissions(real, part)
            yield part
            with suppress(OSError):  # some file systems have no permissions
                os.chmod(part, mode)
            os.replace(part, real)
    finally:
        with naming(path, part):
            part.unlink(missing_ok=True)


def check_writable(path: str | Path, folder: bool = False) -> None:
    """Raises OSError, in one sentence, if `path` cannot be written: a file, or with `folder` a folder of files.

    To be called at the start of a command, so that its work is not lost at the end. Writes a few bytes to the folder,
    or to its nearest existing parent, and removes them; nothing else is changed.
    """
    path = Path(path)
    with naming(path):
        if not folder:
            _refuse_unwritable(path)
        real = _real(path)
        place = real if folder else real.parent
        while not _exists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise OSError(f"{path} cannot be written: {place} is {'no folder' if _exists(place) else 'not there'}")
        for part in real.relative_to(place).parts:
            _exists(place / part)  # raises for invalid names
        with tempfile.TemporaryFile(dir=place) as trial:
            trial.write(bytes(_TRIAL_BYTES))
            trial.flush()


def check_folder(folder: str | Path, listing: str | Path | None = None) -> None:
    """Raises FileNotFoundError unless `folder` is a folder, and `listing`, if there is one, a file."""
    folder = Path(folder)
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file; name its folder, {folder.parent}")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if listing is not None and not Path(listing).is_file():
        raise FileNotFoundError(f"there is no file {listing}; it must list clips, one JSON object a line")


def is_leftover(name: str) -> bool:
    """Whether a hidden file or folder of this name was left by an interrupted run of this program."""
    return any(pattern.fullmatch(name) for pattern in (_PART, _TMP, _NOTES))


def remove_parts(folder: Path) -> None:
    """Removes the leftovers of killed writers in `folder`, which no other process may be using."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if (_PART.fullmatch(path.name) or _TMP.fullmatch(path.name)) and path.is_file():
            path.unlink()


@contextmanager
def one_at_a_time(path: str | Path, seconds: int | float = 2.0) -> Iterator[None]:
    """While open, no other process is in such a block of the same `path`. Waits for it, at most `seconds`.

    For a few milliseconds in which `path` is read and written. The lock is a hidden file beside it, which is removed at
    the end. Where nothing can be locked (a folder that is missing or write-protected, some network file systems), or
    the other one takes longer, the block runs all the same.
    """
    lock, handle, end = Path(path).parent / f".{Path(path).name}{_LOCK}", None, time.monotonic() + seconds
    with suppress(OSError):
        while handle is None and time.monotonic() < end:
            handle = _taken(lock)
    try:
        yield
    finally:
        if handle is not None:
            _let_go(handle, lock)


@contextmanager
def locked(folder: str | Path, instead: str = "name another folder") -> Iterator[None]:
    """Locks `folder` for this process during the block. Creates the folder, and removes it if it is empty at the end.

    `instead`: an alternative to waiting, for the message.

    The lock ends with the process, however it dies, and is never stale. Raises ValueError if another process holds it,
    OSError if the folder cannot be created. If the file system has no locks, prints a warning to stderr.
    """
    folder = Path(folder)
    with naming(folder):
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked_file(folder / _LOCK, folder, instead)
    try:
        yield
    finally:
        _let_go(handle, folder / _LOCK)
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _locked_file(path: Path, folder: Path, instead: str) -> int:
    """A handle of the current lock file: an earlier one may have been removed while we waited for it."""
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
            print(visible(f"{folder} cannot be locked ({error.strerror}); see to it that no other run writes to it"),
                  file=sys.stderr)
        if _is_current(handle, path):
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)


def _taken(lock: Path) -> int | None:
    """A handle of the lock file, or None where another process has it, after a short rest. Raises OSError."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(handle)
        if _is_current(handle, lock):
            return handle
    except (BlockingIOError, PermissionError):  # POSIX, Windows
        time.sleep(0.01)
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _is_current(handle: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle), os.stat(path))


def _let_go(handle: int, path: Path) -> None:
    if sys.platform == "win32":  # where an open file cannot be removed, nor one that the next run has locked
        os.close(handle)
        with suppress(OSError):
            path.unlink()
    else:
        path.unlink(missing_ok=True)
        os.close(handle)


def _take(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _exists(path: Path) -> bool:
    """Like `os.path.lexists`, but raises for names that are too long and folders that may not be read."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _permissions(path: Path, part: Path) -> int:
    """The permissions of `path`, or the default of a new file: some writers create private files."""
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
    """Rewrites system errors about `part`, or about no file, to name `path`; other messages are unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno is None or part and error.filename not in (None, str(part)):
            raise
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def _real(path: Path) -> Path:
    """Where a link leads, even if nothing is there yet; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _refuse_unwritable(path: Path) -> None:
    """Raises OSError for a folder, or a device such as /dev/null, which must not be replaced, and a protected file."""
    if path.is_dir():
        raise OSError(f"{path} cannot be written: it is a folder, and must be a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} cannot be written: it is a device or a pipe, and must be a file")
    if path.exists() and not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):  # root has access to all
        raise OSError(f"{path} cannot be written: it is write-protected; name another file")
