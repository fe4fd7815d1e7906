"""Producer, gateway and archive beside every bad content of the streams server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from demand_contents import CASES, CONTENTS, SAMPLE, Case
from demand_rig import Rig

from qmt_protocol.redis_users import USERS


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path_factory.mktemp("poison"), stack)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=case.content.name,
            marks=() if case.content.name in SAMPLE else pytest.mark.long,
        )
        for case in CASES
    ],
)
def test_all_go_on_and_the_content_is_named(rig: Rig, case: Case) -> None:
    rig.meet(case)


def test_there_are_many_contents_each_of_a_role_of_its_server() -> None:
    assert len(CONTENTS) >= 40
    assert max(Counter(content.name for content in CONTENTS).values()) == 1
    assert {content.name for content in CONTENTS} >= SAMPLE
    roles = {(user.role, user.server) for user in USERS} | {("admin", "streams")}
    assert {(content.role, content.server) for content in CONTENTS} <= roles
