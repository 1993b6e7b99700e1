"""API keys: who may do what. Only hashes are kept; a key itself is shown once, when it is made.

The file is JSON: `{"keys": [{"id", "owner", "hash", "scopes", "created", "expires"}]}`. It is read again when it
changes, so keys come and go without a restart; an owner may have several, which is how one is exchanged for another.
A key reads `ms_<id>_<secret>`; its hash is SHA-256, which is enough for 256 random bits.
"""

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from millstream.protocol.errors import Problem

Scope = Literal["submit", "read", "files:read", "files:write", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
RELOAD_INTERVAL_S = 1.0  # how often the file is looked at


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the owner of what is made, and what it may do. `admin` may do everything. `key`: the id of its key."""

    owner: str
    scopes: frozenset[str]
    key: str = ""

    def require(self, scope: Scope) -> None:
        """Raises Problem forbidden."""
        if scope not in self.scopes and "admin" not in self.scopes:
            has = ", ".join(sorted(self.scopes)) or "none"
            raise Problem("forbidden", f"This key lacks the scope {scope!r}; it has: {has}.")


ANONYMOUS = Principal("", frozenset(SCOPES))  # every client, where no keys are set up


@dataclass(frozen=True, slots=True)
class Key:
    """One key as it is kept. Times are RFC 3339, UTC; `expires` None: never."""

    id: str
    owner: str
    hash: str
    scopes: list[Scope]
    created: str
    expires: str | None = None

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and datetime.fromisoformat(self.expires) <= now


@dataclass(frozen=True, slots=True)
class KeyFile:
    keys: list[Key] = field(default_factory=list)


_KEY_FILE = TypeAdapter(KeyFile)


class BadKeyFile(Exception):
    """The file of keys cannot be read; the message says why."""


def read_keys(path: Path) -> list[Key]:
    """Raises BadKeyFile. A file that is not there holds no keys."""
    try:
        return _KEY_FILE.validate_json(path.read_bytes()).keys
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise BadKeyFile(f"The key file {path} cannot be read: {error}") from None


def write_keys(path: Path, keys: Iterable[Key]) -> None:
    """Replace the file as a whole, readable by its owner only."""
    text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


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
    client may do everything.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._keys: dict[str, Key] = {}
        self._looked = float("-inf")
        self._stamp: tuple[int, int, int] | None = None
        if path is not None:
            self._read(path)

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

    def _look(self, path: Path) -> None:
        if time.monotonic() - self._looked < RELOAD_INTERVAL_S:
            return
        self._looked = time.monotonic()
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except FileNotFoundError:
            stamp = (0, 0, 0)
        if stamp != self._stamp:
            try:
                self._read(path)
            except BadKeyFile:
                return  # half-way through an edit by hand: keep what is known, and look again
            self._stamp = stamp

    def _read(self, path: Path) -> None:
        self._keys = {key.id: key for key in read_keys(path)}
