"""The cache: directories that are dear to make and made of files alone are made once.

They lie in `$XDG_CACHE_HOME/surgeon` (`~/.cache/surgeon`), the one place beside `--out` that this
package writes in, as KIND/DIGEST: the digest is that of all that an entry was made of. Beside each
lies `DIGEST.lock`, which a process locks for as long as it lives when it uses the entry, and which
lists the entry's files once it is whole. Locks go with their process, so a kill leaves no more than
a partial directory, which the next run removes.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon import lineage, progress
from surgeon.errors import BadInput

LIMIT = "SURGEON_CACHE_LIMIT"
"""The environment's name for the cache's size: 20GB, 500MB, a number of bytes; 0 keeps nothing."""
DEFAULT_LIMIT = "64GB"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
PARTIAL = ".partial"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS)
_held: dict[Path, int] = {}
"""Entry -> descriptor of the lock on it, kept while this process lives."""
_temporary: dict[tuple[str, str], Path] = {}
"""What this process made without the cache."""


def root() -> Path:
    """The cache's directory; nothing makes it before something is kept."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "surgeon"


def owns(path: Path) -> bool:
    """Whether a directory is the cache's, or temporary: nothing that lasts may point at it."""
    place = path.resolve()
    return any(owner in place.parents for owner in (root().resolve(), *lineage.SCRATCH))


def limit() -> int:
    """Bytes that the cache may take; raises `BadInput` for a limit that can't be read."""
    text = os.environ.get(LIMIT, "").strip() or DEFAULT_LIMIT
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text, re.IGNORECASE)
    if found is None:
        raise BadInput(f"found {LIMIT} = {text}, expected a size such as 20GB, or 0 for no cache.")
    return int(float(found[1]) * UNITS[found[2].upper()])


@contextmanager
def unused() -> Iterator[None]:
    """Inside the block nothing is kept, here and in the processes that this one starts."""
    before = os.environ.get(LIMIT)
    os.environ[LIMIT] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[LIMIT]
        else:
            os.environ[LIMIT] = before


def kept(kind: str, digest: str, make: Callable[[Path], None], *, n_bytes: int = 0) -> Path:
    """The directory of this kind and digest, made by `make(partial directory)` where there is none.

    `n_bytes` is about what it will take on the disk. The directory stays while this process lives;
    later the least recently used goes first when room is wanted. Of two processes that want the
    same, one makes it and the other waits. Where the cache is off, full or can't be written, the
    directory is a temporary one that goes with this process.
    """
    most = limit()
    if most and n_bytes <= most:
        place = root() / kind
        try:
            place.mkdir(parents=True, exist_ok=True)
            return _kept(place / digest.removeprefix("sha256:")[:32], make, n_bytes, most)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            progress.say(f"{error.filename} can't be written: this run keeps nothing for later.")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            progress.say(f"{place} is on a disk without locks: this run keeps nothing for later.")
    elif most:
        progress.say(
            f"{n_bytes / 1e9:.1f} GB are more than {LIMIT} = {most / 1e9:.1f} GB: made for this "
            "run only."
        )
    if (kind, digest) not in _temporary:
        place = lineage.scratch() / digest.removeprefix("sha256:")[:12]
        place.mkdir()
        make(place)
        _temporary[kind, digest] = place
    return _temporary[kind, digest]


def _kept(entry: Path, make: Callable[[Path], None], n_bytes: int, most: int) -> Path:
    while True:
        if entry not in _held:
            _held[entry] = _lock(entry, fcntl.LOCK_SH)
        if _whole(entry):
            os.utime(_lock_file(entry))
            return entry
        os.close(_held.pop(entry))
        lock = _lock(entry, fcntl.LOCK_EX)  # waits while another process makes it
        try:
            if not _whole(entry):
                _make(entry, make, n_bytes, most)
        finally:
            os.close(lock)


def _make(entry: Path, make: Callable[[Path], None], n_bytes: int, most: int) -> None:
    """Make an entry whose lock is held alone."""
    partial = entry.with_name(entry.name + PARTIAL)
    for leftover in (partial, entry):
        shutil.rmtree(leftover, ignore_errors=True)
    _make_room(entry.parent.parent, n_bytes, most)
    partial.mkdir()
    try:
        make(partial)
        sizes = _sizes(partial)
        for name in sizes:
            lineage.sync(partial / name)
        with open(_lock_file(entry), "r+", encoding="utf-8") as file:
            file.truncate()
            json.dump(sizes, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, entry)
        lineage.sync(entry.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _whole(entry: Path) -> bool:
    """Whether an entry is there with all its files, of which something may have removed some."""
    if not entry.is_dir():
        return False
    try:
        listed = json.loads(_lock_file(entry).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return listed == _sizes(entry)


def _sizes(directory: Path) -> dict[str, int]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.stat().st_size for path in sorted(files)}


def _lock_file(entry: Path) -> Path:
    return entry.with_name(entry.name + ".lock")


def _lock(entry: Path, how: int) -> int:
    """A descriptor that holds the lock of an entry; raises `BlockingIOError` with LOCK_NB."""
    file = _lock_file(entry)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, how)
            # Who waited for a lock whose file was removed meanwhile holds nothing.
            if os.path.exists(file) and os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _make_room(cache: Path, n_bytes: int, most: int) -> None:
    """Remove what killed runs left, then what was not used for longest and nobody uses now."""
    for partial in cache.glob(f"*/*{PARTIAL}"):
        _remove(partial.with_name(partial.name.removesuffix(PARTIAL)), partial)
    entries = [path.with_suffix("") for path in cache.glob("*/*.lock")]
    used = {entry: sum(_sizes(entry).values()) for entry in entries if entry.is_dir()}
    total = sum(used.values())
    for entry in sorted(used, key=lambda entry: _lock_file(entry).stat().st_mtime):
        enough = lineage.free_bytes(cache) >= n_bytes + lineage.DISK_RESERVE
        if total + n_bytes <= most and enough:
            return
        if _remove(entry, entry):
            total -= used[entry]
    if lineage.free_bytes(cache) < n_bytes + lineage.DISK_RESERVE:
        raise BadInput(
            f"the cache {cache} needs {n_bytes / 1e9:.2f} GB and has "
            f"{lineage.free_bytes(cache) / 1e9:.2f} GB free. Free some space, set XDG_CACHE_HOME "
            "to another disk, or use --no-cache (a temporary directory)."
        )


def _remove(entry: Path, directory: Path) -> bool:
    """Remove a directory of an entry, unless a process uses or makes it."""
    try:
        lock = _lock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(directory, ignore_errors=True)
        if not entry.is_dir():
            _lock_file(entry).unlink(missing_ok=True)
    finally:
        os.close(lock)
    return True
