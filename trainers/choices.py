"""How sections of a config are typed: strict keys, numbers that are numbers, options chosen by their `name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field

STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _number(value: object) -> object:
    if isinstance(value, bool):  # YAML reads yes, no, on and off as these
        raise ValueError("should be a number, not yes or no")
    return value


IsNumber = BeforeValidator(_number)
Number = Annotated[float, IsNumber]
Count = Annotated[int, IsNumber, Field(gt=0)]
NotNegative = Annotated[float, IsNumber, Field(ge=0, allow_inf_nan=False)]


def chosen_by_name(*, default: str) -> Discriminator:
    """Tells the members of a tagged union apart by the value of `name`, `default` where a mapping has none."""

    def name_of(value: object) -> str:
        return str(value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", default))

    return Discriminator(name_of)
