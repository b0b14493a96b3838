"""Settings from REVERIE_ variables, read once into a frozen object: the same rules and errors in every process.

An empty variable counts as absent, so that a compose file or a shell can pass one on whether or not it is set.
"""

import os
from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from worker.contract.redis_address import without_password

PREFIX = "REVERIE_"


class SettingsError(ValueError):
    """Settings that can't be used: a line for each, naming the variable or option, its value and the rule."""


class EnvironmentSettings(BaseModel):
    """A field `max_batch` is read from REVERIE_MAX_BATCH; variables of the other processes are left to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ, **options: object) -> Self:
        """Read the environment; options of a command line come before it.

        Raises:
            SettingsError: a value is missing or breaks its rule.
        """
        names = {PREFIX + field.upper(): field for field in cls.model_fields}
        values = {names[key.upper()]: text for key, text in environment.items() if text and key.upper() in names}
        try:
            return cls.model_validate({**values, **options})
        except ValidationError as error:
            lines = [cls._line(problem, options) for problem in error.errors()]
            raise SettingsError("\n".join(lines)) from None  # the cause would show a password

    @classmethod
    def _line(cls, problem: Any, options: Mapping[str, object]) -> str:
        rule = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            return str(rule)  # of several fields: it names them itself
        field = str(problem["loc"][0])
        name = f"--{field.replace('_', '-')}" if field in options else PREFIX + field.upper()
        if problem["type"] == "missing":
            return f"{name} is not set: need {cls.model_fields[field].description or 'a value'}"
        shown = "***" if _holds_secret(cls.model_fields[field].annotation) else without_password(str(problem["input"]))
        return f"{name}={shown}: {rule[0].lower()}{rule[1:]}"


def _holds_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in get_args(annotation)
