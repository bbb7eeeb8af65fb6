"""Checks SQL conditions, and explains errors in the words of the condition.

Lance's parser lets several mistakes pass: it drops what follows a whole condition, takes "name" for a text rather than
a column, and aborts on placeholders. Each is refused here with the spelling that is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.source_positions import remove_source_positions
from actors.suggest import did_you_mean
from pipelines.config import InvalidRequest

LISTED_VALUES = 500
"""Values from which a list of texts is matched as a set rather than parsed: 50,000 take Lance's parser 200 ms."""
LIST_HEAD = re.compile(r"\s*(?:(\w+)|`([^`]+)`)\s+IN\s*\(\s*", re.IGNORECASE)
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`")
INTEGER_TOKEN = re.compile(r"(?a:<=|>=|<>|!=|[()<>=,]|(?<![\w.])-?\d{1,18}(?![\w.])|[A-Za-z_]\w*)")
INTEGER_WORDS = {"AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL"}
ABORTED = "Task was aborted"
"""Of Lance's RuntimeError when its planner panics, as on literals unknown to it (N'x', B'01' in Lance 13)."""
T = TypeVar("T")
PLACEHOLDER = re.compile(r"\?|\$\w*|(?<!:):[A-Za-z_]\w*")


def check_is_text(where: object) -> None:
    """Raises InvalidRequest for a condition that is not a text."""
    if not isinstance(where, str):
        raise InvalidRequest(f"where: expected a SQL condition as a string, got {type(where).__name__}")


def check_filter(where: str, columns: Sequence[str] = ()) -> None:
    """Rejects what Lance's parser lets pass or aborts on; InvalidRequest explains the right form.

    columns: names that a text in double quotes is likely to mean.
    """
    check_is_text(where)
    outside = QUOTED.sub("", where)
    if not outside.strip() and outside == where:
        raise InvalidRequest("where: the condition is empty")
    if ";" in outside:
        raise InvalidRequest(f"where: one condition is expected, found ';' in {where!r}")
    if "'" in outside or '"' in outside or "`" in outside:
        raise InvalidRequest(f"where: a quote is not closed in {where!r}; within a text it is doubled, as in 'it''s'")
    placeholder = PLACEHOLDER.search(outside)
    if placeholder:
        raise InvalidRequest(
            f"where: {placeholder[0]!r} is a placeholder in {where!r}; write the value itself, as in lang = 'en'"
        )
    if columns:
        _check_double_quotes(where, columns)
    if not _is_balanced(outside):
        raise InvalidRequest(f"where: the parentheses do not match in {where!r}")


def parse_text_list(where: str) -> tuple[str, pa.Array] | None:
    """Parses a condition that is one long list of texts, `column IN ('a', 'b', ...)`, to the column and the values.

    None for any other condition, a short list, and texts with quotes in them. Split by Arrow, 50,000 texts take 3 ms.

    >>> parse_text_list("doc_id IN ('a', 'b')") is None  # short
    True
    """
    head, _, listed = where.partition("'")
    found = LIST_HEAD.fullmatch(head)
    if found is None or where.count("'") < 2 * LISTED_VALUES:
        return None
    pieces = pc.split_pattern(pa.array([listed]), "'").flatten()  # value, separator, value, ..., what follows the last
    values, between = (pieces.take(pa.array(np.arange(i, len(pieces), 2))) for i in (0, 1))
    if len(values) != len(between) or between[-1].as_py().strip() != ")":
        return None
    separators = pc.unique(between.slice(0, len(between) - 1)).to_pylist()
    if {separator.strip() for separator in separators} != {","}:
        return None  # a doubled quote within a text is an empty separator
    return found[1] or found[2], values


def compares_integers(where: str, columns: Collection[str]) -> bool:
    """Returns whether a condition names no other columns than these and holds nothing but whole numbers and operators.

    >>> compares_integers("NOT (year > 2000 AND year <> 2020)", {"year"}), compares_integers("year > 1.5", {"year"})
    (True, False)
    """
    tokens = INTEGER_TOKEN.findall(where)
    names = [token for token in tokens if token[0].isalpha() or token[0] == "_"]
    known = all(name in columns or name.upper() in INTEGER_WORDS for name in names)
    return known and "".join(tokens) == "".join(where.split())


def _check_double_quotes(where: str, columns: Sequence[str]) -> None:
    for quoted in QUOTED.finditer(where):
        if not quoted[0].startswith('"'):
            continue
        name = quoted[0][1:-1]
        column = name if name in columns else next((c for c in columns if c.lower() == name.lower()), None)
        meant = f"the column is written `{column}`" if column else f"a text is written '{name}', a column `{name}`"
        raise InvalidRequest(f"where: double quotes around {name!r} in {where!r}: {meant}")


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def evaluate_condition(where: str, columns: Sequence[str], run: Callable[[str], T]) -> T:
    """Checks a condition and runs it; InvalidRequest explains what is wrong with it.

    It runs in parentheses, so that Lance's parser has to read all of it: alone, it drops what follows a condition.
    """
    check_filter(where, columns)
    try:
        return run(f"({where}\n)")
    except RuntimeError as error:
        if ABORTED not in str(error):
            raise
        raise InvalidRequest(f"where: Lance's parser cannot read {where!r}") from error
    except ValueError as error:
        raise InvalidRequest(f"where: {_explain(error, where, columns, run)} in {where!r}") from error


def _explain(error: ValueError, where: str, columns: Sequence[str], run: Callable[[str], T]) -> str:
    """Explains the condition's own error if it has one; else only what follows it is wrong."""
    try:
        run(where)
    except ValueError as own:
        return explain_filter_error(own, columns)
    rest = re.search(r"Expected: \), found: (.+?)(?: at Line|\)|$)", str(error))
    return f"there is text after the condition{f', at {rest[1]!r},' if rest else ''}"


def explain_filter_error(error: Exception, columns: Sequence[str] = ()) -> str:
    """Returns Lance's message without prefixes and Rust source lines, with the column that a wrong name may mean."""
    text = remove_source_positions(str(error)).removeprefix("Invalid user input: ").strip()
    syntax = re.search(r"\(sql parser error: (.*)\)", text)
    if syntax:
        return f"syntax error: {syntax[1]}"
    unknown = re.search(r"No field named \"?([^\".]+)\"?\. ", text)
    if unknown and columns:
        near = did_you_mean(unknown[1], columns)
        quoted = f"; a text is written in quotes, '{unknown[1]}'"
        return f"No field named {unknown[1]}; there are {', '.join(columns)}{near}{quoted}"
    return re.sub(r"^Schema error: |\.$", "", text)
