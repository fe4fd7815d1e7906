"""Settings that roles share: from flags, then ``QMT_*`` variables, then ``qmt.toml``.

``QMT_CONFIG`` names another file. Each role adds its own settings in a subclass; a name means the
same in all of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from .errors import ConfigurationError
from .keys import JobKeys, Keys
from .urls import RedisUrl

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CommaList",
    "PathOrNone",
    "RedisSettings",
    "RoleSettings",
    "TerminalSettings",
    "load_settings",
]


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


CommaList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""A list that flags and variables give as one text, comma-separated."""

PathOrNone = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
"""A path that may be left empty; without this an empty one would be the current folder."""


class _TomlFile(TomlConfigSettingsSource):
    """The file, also as Windows' editors write it."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            written = file_path.read_bytes().decode("utf-8-sig")
            return tomllib.loads(written)
        except ValueError as error:  # what is wrong with the text or its encoding
            raise ConfigurationError(
                f"{file_path} cannot be read: {error}.",
                hint="Correct it; it must be TOML in UTF-8, and a path in it is written in "
                r"'single quotes': 'D:\QMT'.",
            ) from error


class RoleSettings(BaseSettings):
    """Base of every role's settings."""

    model_config = SettingsConfigDict(
        env_prefix="QMT_",
        extra="ignore",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="how much is logged"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments and flags, environment, file."""
        file = Path(os.environ.get("QMT_CONFIG", "qmt.toml"))
        return init_settings, env_settings, _TomlFile(settings_cls, file)


class RedisSettings(RoleSettings):
    """Where the two Redis servers are, and under which prefix the data lie."""

    streams_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis that holds the streams (AOF, never evicts)",
    )
    jobs_url: RedisUrl = Field(
        "redis://127.0.0.1:6380/0",
        repr=False,
        description="Redis that holds RQ's jobs and results",
    )
    prefix: str = Field("qmt", description="prefix of all keys")

    @property
    def keys(self) -> Keys:
        """Key names on the streams server."""
        return Keys(self.prefix)

    @property
    def job_keys(self) -> JobKeys:
        """Key names on the jobs server."""
        return JobKeys(self.prefix)


class TerminalSettings(RoleSettings):
    """How to reach the QMT terminal on this machine."""

    terminal_host: str = Field("", description="address of the terminal; empty: discover it")
    terminal_port: int | None = Field(None, ge=1, le=65535, description="port of the terminal")
    terminal_path: PathOrNone = Field(
        None, description="folder of the terminal to use; where it is set no other one is"
    )
    terminal_programs: CommaList = Field(
        ["XtItClient.exe", "XtMiniQmt.exe"],
        min_length=1,
        description="programs that are a terminal, by file name, comma-separated",
    )
    xtquant_path: PathOrNone = Field(
        None, description="folder that holds the xtquant package a terminal ships"
    )
    native_module: str = Field(
        "", description="Python module to use in place of xtquant's native one (the simulator)"
    )
    functions_file: PathOrNone = Field(
        None, description="file that keeps which functions a terminal lacks; empty: none is kept"
    )
    calendar_file: PathOrNone = Field(
        None, description="holidays and trading days by your own word (TOML); empty: there are none"
    )


_S = TypeVar("_S", bound=RoleSettings)


def load_settings(kind: type[_S], arguments: list[str] | None = None) -> _S:
    """Read a role's settings from flags, environment and file.

    Parameters
    ----------
    kind
        The role's settings class; its docstring heads the ``--help`` page.
    arguments
        Command line without the program's name; ``None`` reads ``sys.argv``.

    Raises
    ------
    ConfigurationError
        When a value is not allowed; the message names the setting.
    """
    try:
        return CliApp.run(kind, cli_args=arguments)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()
        )
        raise ConfigurationError(
            f"Settings are wrong: {wrong}.",
            hint="See --help; variables are spelled QMT_<NAME>.",
        ) from error
