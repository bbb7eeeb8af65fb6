"""Reads API keys from a file: their scopes (search, encode, write) and their row filters.

    keys:
      - name: team-a
        sha256: 6ff0...              # of the key; `tridex serve-key` makes a key and prints this entry
        scopes: [search, encode]
        filter: "tenant = 'a'"       # optional: a condition that every row must meet to exist for this key

Keys are long random strings, so a plain SHA-256 is enough to keep them from a reader of the file. A filter is evaluated
by itself and the resulting rows are intersected with those of a request's own filter: no text of a request is ever
joined with it, so none can close its brackets.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pipelines.config import ConfigError, read_yaml, validated
from pipelines.config.settings import Model
from pipelines.store.conditions import check_filter

Scope = Literal["search", "encode", "write"]
SCOPES: tuple[Scope, ...] = ("search", "encode", "write")


class Key(Model):
    """Describes one API key: its scopes and its tenant's row filter."""

    name: str
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = Field(min_length=1)
    filter: str | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes


class KeyFile(Model):
    """Describes the key file."""

    keys: tuple[Key, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Keys:
    """Looks up keys by the token of a request. Without a key file, every request is `anonymous`."""

    by_hash: Mapping[str, Key] = field(default_factory=dict)
    anonymous: Key | None = None

    def find(self, token: str | None) -> Key | None:
        """Returns the key of a token; None for an unknown token, or a missing one if keys are required."""
        if self.anonymous is not None:
            return self.anonymous
        digest = hash_key(token or "")
        known = self.by_hash.get(digest)
        return known if known is not None and hmac.compare_digest(known.sha256, digest) else None


def hash_key(token: str) -> str:
    """Hashes a token with SHA-256 and returns hexadecimal digits."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def new_key(name: str, scopes: tuple[Scope, ...], where: str | None = None) -> tuple[str, Key]:
    """Generates a key of 256 random bits; returns the token, which is stored nowhere, and its entry for the file."""
    token = f"tdx_{secrets.token_urlsafe(32)}"
    return token, Key(name=name, sha256=hash_key(token), scopes=scopes, filter=where)


def read_keys(path: Path | None, open_writes: bool = False) -> Keys:
    """Reads the key file; ConfigError names the invalid entry. Without a file, one anonymous key reads every row."""
    if path is None:
        scopes = SCOPES if open_writes else ("search", "encode")
        return Keys(anonymous=Key(name="anonymous", sha256="0" * 64, scopes=scopes))
    try:
        found = validated(KeyFile, read_yaml(path)).keys
        for key in found:
            if key.filter is not None:
                check_filter(key.filter)
    except ConfigError as error:
        raise ConfigError(f"--keys {path}: {error}") from error
    if len({key.sha256 for key in found}) < len(found):
        raise ConfigError(f"--keys {path}: the same key is there twice")
    return Keys({key.sha256: key for key in found})
