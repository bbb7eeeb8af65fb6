"""Brings an index to the newest format in place (`tridex migrate`), as the next build would; nothing is embedded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.store.documents import hold_lease, target_of
from pipelines.store.evolve import upgrade_hashes
from pipelines.store.schema import Identity
from pipelines.store.table import open_table


@dataclass(frozen=True, slots=True)
class Migration:
    """Reports the format of an index before and after. version: of the table that has it."""

    uri: str
    before: int
    after: int
    version: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        if self.before == self.after:
            return f"{self.uri}: format {self.after} is the newest; nothing to do"
        return f"{self.uri}: format {self.before} became {self.after}, since version {self.version}"


def migrate_index(uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None) -> Migration:
    """Upgrades an index; resumes one that was interrupted. ConfigError for a newer format, or while a job writes."""
    snapshot = open_table(uri, table, storage_options)
    target = target_of(snapshot, "migrate")
    with hold_lease(target) as lease:
        dataset = upgrade_hashes(target, lease)
    identity = Identity.from_metadata(dataset.schema.metadata)
    assert identity is not None, "open_table found one"
    return Migration(uri, snapshot.identity.format_version, identity.format_version, int(dataset.version))
