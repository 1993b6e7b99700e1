"""API keys: who may do what. Only hashes are kept; a key itself is shown once, when it is made.

The file is JSON: `{"keys": [{"id", "owner", "hash", "scopes", "created", "expires"}]}`. It is read again when it
changes, so keys come and go without a restart; an owner may have several, which is how one is exchanged for another.
An entry that is wrong is no key, and the others count; a file that cannot be read at all counts as it was for a while.
A key reads `ms_<id>_<secret>`; its hash is SHA-256, which is enough for 256 random bits.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import structlog
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from millstream.protocol.errors import Problem

log = structlog.get_logger("millstream.apikeys")

Scope = Literal["submit", "read", "files:read", "files:write", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
RELOAD_INTERVAL_S = 1.0  # how often the file is looked at
Stamp = tuple[int, int, int]  # of a file: another one when it has changed


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the owner of what is made, and what it may do. `admin` may do everything. `key`: the id of its key."""

    owner: str
    scopes: frozenset[str]
    key: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope) -> None:
        """Raises Problem forbidden."""
        if not self.may(scope):
            has = ", ".join(sorted(self.scopes)) or "none"
            raise Problem("forbidden", f"This key lacks the scope {scope!r}; it has: {has}.")


ANONYMOUS = Principal("", frozenset(SCOPES))  # every client, where no keys are set up


def check_owner(name: str) -> str:
    """Names of the store's keys are made with it, and `*` means every owner there. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", name):
        raise ValueError("A name has 1 to 64 letters, digits, dots, dashes, underscores or @.")
    return name


def _moment(text: str) -> datetime:
    """A time of RFC 3339; without a zone it is UTC. Raises ValueError."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _check_moment(text: str) -> str:
    try:
        _moment(text)
    except ValueError:
        raise ValueError("a time is expected, such as 2030-01-31T00:00:00+00:00") from None
    return text


@dataclass(frozen=True, slots=True)
class Key:
    """One key as it is kept. Times are RFC 3339; `expires` None: never."""

    id: Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{1,64}$")]
    owner: Annotated[str, AfterValidator(check_owner)]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: list[Scope]
    created: str
    expires: Annotated[str, AfterValidator(_check_moment)] | None = None

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and _moment(self.expires) <= now


@dataclass(frozen=True, slots=True)
class KeyFile:
    keys: list[Any] = field(default_factory=list)


_KEY_FILE, _KEY = TypeAdapter(KeyFile), TypeAdapter(Key)


class BadKeyFile(Exception):
    """The file of keys cannot be read or changed; the message says why."""


def read_keys(path: Path) -> list[Key]:
    """Raises BadKeyFile, also when a single entry is wrong. A file that is not there holds no keys."""
    found, wrong = read_good_keys(path)
    if wrong:
        raise BadKeyFile(f"The key file {path} cannot be read: {'; '.join(wrong)}")
    return found


def read_good_keys(path: Path) -> tuple[list[Key], list[str]]:
    """The keys, and what is wrong with the other entries. Raises BadKeyFile when there is no telling entries apart."""
    try:
        entries = _KEY_FILE.validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise BadKeyFile(f"The key file {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise BadKeyFile(f"The key file {path} cannot be read: {_first_fault(error)}") from None
    found: list[Key] = []
    wrong = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_KEY.validate_python(entry))
        except ValidationError as error:
            wrong.append(f"entry {number}: {_first_fault(error)}")
    return found, wrong


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    return ": ".join([".".join(map(str, fault["loc"])), fault["msg"]]).removeprefix(": ")


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Replace the file as a whole. It keeps its owner and mode; a new one is readable by its owner only. Raises
    BadKeyFile where that cannot be.
    """
    path = path.resolve()
    text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            if path.exists():
                _make_like(path, handle)
            file.write(text)
            file.flush()
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _make_like(path: Path, handle: int) -> None:
    before, now = path.stat(), os.fstat(handle)
    if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
        try:
            os.fchown(handle, before.st_uid, before.st_gid)
        except PermissionError:
            raise BadKeyFile(f"{path} is user {before.st_uid}'s: change it as that user, or as root.") from None
    os.fchmod(handle, stat.S_IMODE(before.st_mode))


def change_keys(path: Path, change: Callable[[list[Key]], list[Key]]) -> None:
    """Read the file, change what it holds, write it; processes that do so take turns. Raises BadKeyFile, OSError."""
    path = path.resolve()
    with _turn(path.parent):
        write_keys(path, change(read_keys(path)))


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """One process at a time: the lock is on the directory, because the file itself is replaced."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def new_key(owner: str, scopes: list[Scope], lifetime: timedelta | None) -> tuple[str, Key]:
    """Make a key: what its user gets, and what is kept."""
    id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    text = f"ms_{id}_{secret}"
    now = datetime.now(UTC).replace(microsecond=0)
    expires = (now + lifetime).isoformat() if lifetime else None
    return text, Key(id, owner, _hash(text), scopes, now.isoformat(), expires)


def bearer(authorization: str) -> str:
    """The key in an Authorization header (RFC 6750 §2.1). Raises Problem unauthorized for any other scheme."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Problem("unauthorized", "Authorization must read: Bearer KEY.")
    return key.strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _principal(key: Key) -> Principal:
    return Principal(key.owner, frozenset(key.scopes), key.id)


class Keys:
    """The keys of one process, kept up to date with their file. `path` None: no keys are set up, and every
    client may do everything. A file that can no longer be read counts as it was for `unreadable_s` seconds.
    """

    def __init__(self, path: Path | None, *, unreadable_s: float = 60) -> None:
        self.path = path
        self._unreadable_s = unreadable_s
        self._keys: dict[str, Key] = {}
        self._looked = float("-inf")
        self._read_last = float("-inf")
        self._stamp: Stamp | None = None
        self._fault = ""
        if path is not None:
            self._look(path)

    def authenticate(self, authorization: str | None, *, key: str | None = None) -> Principal:
        """Whose key an Authorization header holds or, without one, whose `key` is. Raises Problem unauthorized."""
        if self.path is None:
            return ANONYMOUS
        text = key if authorization is None else bearer(authorization)
        if text is None:
            raise Problem("unauthorized", "A key is needed: Authorization: Bearer KEY.")
        self._look(self.path)
        parts = text.split("_", 2)
        found = self._keys.get(parts[1]) if len(parts) == 3 else None
        # Hash and compare for an unknown id too, so that the time taken tells nothing.
        known = hmac.compare_digest(_hash(text), found.hash if found else "0" * 64)
        if found is None or not known:
            raise Problem("unauthorized", "This key is not known.")
        if found.expired(datetime.now(UTC)):
            raise Problem("unauthorized", "This key has expired.")
        return _principal(found)

    def is_still_valid(self, who: Principal) -> bool:
        """Is this principal's key still valid, with the same owner and scopes?"""
        if self.path is None:
            return True
        self._look(self.path)
        found = self._keys.get(who.key)
        return found is not None and _principal(found) == who and not found.expired(datetime.now(UTC))

    def require(self, who: Principal, scope: Scope) -> None:
        """What came with a key may outlive it. Raises Problem: unauthorized, forbidden."""
        if not self.is_still_valid(who):
            raise Problem("unauthorized", "The key that you came with was revoked, has expired, or was changed.")
        who.require(scope)

    def _look(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._looked < RELOAD_INTERVAL_S:
            return
        self._looked = now
        try:
            stamp = _stamp(path)
            if stamp != self._stamp or self._fault:
                found, wrong = read_good_keys(path)
                self._keys = {key.id: key for key in found}
                for fault in wrong:
                    log.error("an entry of the key file is no key", file=str(path), fault=fault)
        except BadKeyFile as error:  # half-way through an edit by hand, say
            self._cannot_read(str(error), now)
            return
        self._stamp, self._fault, self._read_last = stamp, "", now

    def _cannot_read(self, fault: str, now: float) -> None:
        if fault != self._fault:
            log.error("keys that are revoked now would still count", fault=fault, for_s=self._unreadable_s)
        self._fault = fault
        if self._keys and now - self._read_last > self._unreadable_s:
            self._keys = {}
            log.error("no key counts any longer, until the key file can be read", fault=fault)


def _stamp(path: Path) -> Stamp:
    """Raises BadKeyFile."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    except OSError as error:
        raise BadKeyFile(f"The key file {path} cannot be read: {error.strerror}") from None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
