"""Checks every invariant of an index (`tridex check`) from its tables alone, without changing anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pipelines.integrity.search_indexes import SEARCH_CHECKS
from pipelines.integrity.subject import Subject, attempt, examine
from pipelines.integrity.table import REMOVE_LOST, TABLE_CHECKS, Check
from pipelines.store.table import open_table


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Reports every check of one version of an index."""

    uri: str
    version: int
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        return not any(check.problems for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}

    def text(self) -> str:
        end = "sound" if self.sound else "NOT sound, see the remedies"
        return "\n".join([*(check.text() for check in self.checks), f"{self.uri}, version {self.version}: {end}"])


def check_index(uri: str, table: str = "documents", storage_options: Mapping[str, str] | None = None) -> CheckReport:
    """Checks the newest version of an index; ConfigError if it cannot be opened.

    Runs a second time, reading each fragment by itself, where bytes inside a file cannot be read.
    """
    snapshot = open_table(uri, table, storage_options)
    checks, failed = _run_checks(examine(snapshot))
    if failed:
        checks, _ = _run_checks(examine(snapshot, read=True))
    return CheckReport(uri, snapshot.version, checks)


def _run_checks(subject: Subject) -> tuple[tuple[Check, ...], bool]:
    """Returns every check's report, and whether one could not read what it looks at."""
    done = [_run_check(check, subject) for check in (*TABLE_CHECKS, *SEARCH_CHECKS)]
    return tuple(check for check, _ in done), any(failed for _, failed in done)


def _run_check(check: Callable[[Subject], Check], subject: Subject) -> tuple[Check, bool]:
    report, failure = attempt(partial(check, subject))
    if report is not None:
        return report, False
    title = check.__name__.removeprefix("_check_").replace("_", " ")
    return Check(f"{title}: can be read", (failure,), (), REMOVE_LOST), True
