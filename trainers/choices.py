"""How sections of a config are typed: strict keys, numbers that are numbers, tables, options chosen by their `name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, PlainSerializer, PlainValidator

from pipelines.order.curriculum import Table

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _number(value: object) -> object:
    if isinstance(value, bool):  # YAML reads yes, no, on and off as these
        raise ValueError("should be a number, not yes or no")
    return value


IsNumber = BeforeValidator(_number)
Number = Annotated[float, IsNumber]
Count = Annotated[int, IsNumber, Field(gt=0)]
NotNegative = Annotated[float, IsNumber, Field(ge=0, allow_inf_nan=False)]


def _table(value: object) -> Table:
    if isinstance(value, Table):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("should be a table of rows [progress, value], for example [[0.0, 2.0e-5]]")
    return Table(tuple(value))


def _count_or_table(value: object) -> int | Table:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if not isinstance(value, Table | list | tuple):
        raise ValueError(f"{value!r} is no count; give a whole number from 1, or rows [progress, count]")
    table = _table(value)
    counts = [count for _, count in table.rows]
    if min(counts) < 0 or max(counts) == 0 or any(count != int(count) for count in counts):
        raise ValueError(f"{_plain(table)} has other values than whole numbers from 0, or nothing but 0; correct them")
    return table


def _plain(value: Any) -> Any:
    return [list(row) for row in value.rows] if isinstance(value, Table) else value


Rows = Annotated[Table, BeforeValidator(_table), PlainSerializer(_plain)]
"""A value by progress, as rows [progress, value]."""
CountOrRows = Annotated[int | Table, PlainValidator(_count_or_table), PlainSerializer(_plain)]
"""A count from 1, or rows of counts from 0."""


def chosen_by_name(*, default: str) -> Discriminator:
    """Tells the members of a tagged union apart by the value of `name`, `default` where a mapping has none."""

    def name_of(value: object) -> str:
        return str(value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", default))

    return Discriminator(name_of)
