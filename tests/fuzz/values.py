"""Texts, values and Arrow columns that files hold, usual ones and odd ones."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

TEXTS = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
    st.sampled_from(
        [
            "plain words here", 'a "quoted" word', "tab\there", "line\nend", "comma, semi; bar |", "möwe 鷗", "  ",
            "same", "same", "nul \0 byte", "carriage\r\nreturn", "\ufeffmark", "line\u2028separator", '"', "[1]",
            "{",
            "1", "null",
        ]
    ),
)  # fmt: skip
ODD_TEXTS = st.one_of(
    st.none(), st.just(""), st.integers(-5, 5), st.booleans(), st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from(["lone \ud800 surrogate", "\ud83d", 2**70, 1e300, {"text": "nested"}]),
)  # fmt: skip
JSON_VALUES = st.one_of(
    st.none(), st.integers(-9, 9), st.floats(-9, 9), st.booleans(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), max_size=2),
    st.sampled_from(
        [2**70, -(2**63), float("nan"), float("inf"), "\ud800", "NaN", "2020-01-01", [1, "a"], [[1], []], [{"a": 1}]]
    ),
)  # fmt: skip

_DAY = datetime.date(2020, 2, 29)
_TIME = datetime.datetime(2020, 2, 29, 12, 30, tzinfo=datetime.timezone.utc)
FLAT_COLUMNS: tuple[tuple[pa.DataType, list[Any]], ...] = (
    (pa.int8(), [1, -1]),
    (pa.int64(), [2**62, 0]),
    (pa.float32(), [0.5, float("nan")]),
    (pa.bool_(), [True, False]),
    (pa.string(), ["x", ""]),
    (pa.binary(), [b"\xff", b""]),
    (pa.date32(), [_DAY]),
    (pa.timestamp("ns"), [_TIME.replace(tzinfo=None)]),
    (pa.decimal128(10, 2), [Decimal("1.50")]),
)
"""Types that ORC has too, with some of their values."""
ARROW_COLUMNS: tuple[tuple[pa.DataType, list[Any]], ...] = (
    *FLAT_COLUMNS,
    (pa.uint64(), [2**64 - 1]),
    (pa.float16(), [0.5]),
    (pa.null(), []),
    (pa.large_string(), ["x"]),
    (pa.string_view(), ["x", "longer than twelve bytes"]),
    (pa.binary(4), [b"\xff\0ab"]),
    (pa.date64(), [_DAY]),
    (pa.time32("ms"), [datetime.time(1, 2)]),
    (pa.time64("us"), [datetime.time(1, 2)]),
    (pa.duration("s"), [datetime.timedelta(seconds=1)]),
    (pa.timestamp("us", "UTC"), [_TIME]),
    (pa.timestamp("ms", "Europe/Vienna"), [_TIME]),
    (pa.decimal256(50, 3), [Decimal("1.500")]),
    (pa.dictionary(pa.int8(), pa.string()), ["x", "y"]),
    (pa.map_(pa.string(), pa.int32()), [[("a", 1)], []]),
    (pa.list_(pa.string()), [["x"], []]),
    (pa.large_list(pa.int8()), [[1], []]),
    (pa.list_(pa.float32(), 2), [[0.5, 1.5]]),
    (pa.list_(pa.struct([("a", pa.int8())])), [[{"a": 1}], []]),
    (pa.list_(pa.null()), [[None], []]),
    (pa.list_(pa.map_(pa.string(), pa.string())), [[[("a", "b")]], []]),
    (pa.struct([("a", pa.int8()), ("b", pa.struct([("c", pa.date32())]))]), [{"a": 1, "b": {"c": _DAY}}]),
    (pa.struct([("a.b", pa.string())]), [{"a.b": "x"}]),
)
TEXT_TYPES = (
    pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.binary(),
)  # fmt: skip
"""Types of the text column."""


def is_plain_text(value: Any) -> bool:
    """Whether a value is null, or text that Arrow can hold."""
    return value is None or (isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value))
