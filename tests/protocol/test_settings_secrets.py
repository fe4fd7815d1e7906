"""What may carry a password or a key is not in the text of the settings."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import fields

import pydantic
import pytest

from qmt_client.settings import Target
from qmt_protocol.settings import RoleSettings

_PACKAGES = (
    *("qmt_protocol", "qmt_client", "qmt_gateway", "qmt_worker", "qmt_producer"),
    *("qmt_archive", "qmt_windows", "qmt_standalone"),
)
_SECRET = ("url", "key", "secret", "password", "token")


def all_settings(kind: type[RoleSettings] = RoleSettings) -> Iterator[type[RoleSettings]]:
    for one in kind.__subclasses__():
        yield one
        yield from all_settings(one)


def is_secret(name: str) -> bool:
    return any(word in part for part in name.split("_") for word in _SECRET)


@pytest.fixture(scope="module", autouse=True)
def everything_imported() -> None:
    for package in _PACKAGES:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__") or "archive" in module.name:
                importlib.import_module(module.name)


def test_no_setting_that_may_hold_a_secret_is_shown() -> None:
    kinds = {one.__name__: one for one in all_settings()}
    assert len(kinds) >= 15
    shown = [
        f"{name}.{field}"
        for name, kind in kinds.items()
        for field, info in kind.model_fields.items()
        if is_secret(field) and info.repr and info.annotation is not pydantic.SecretStr
    ]
    assert shown == []


def test_nor_is_a_clients_target() -> None:
    assert [one.name for one in fields(Target) if is_secret(one.name) and one.repr] == []
