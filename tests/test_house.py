"""The rules of the house: who imports whom, what a folder holds, what no file may name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "qmt_protocol": set(),
    "qmt_runtime": {"qmt_protocol"},
    "qmt_simulator": set(),
    "qmt_terminal": {"qmt_protocol"},
    "qmt_reading": {"qmt_protocol", "qmt_runtime"},
    "qmt_client": {"qmt_protocol", "qmt_runtime", "qmt_reading"},
    "qmt_producer": {"qmt_protocol", "qmt_runtime", "qmt_terminal"},
    "qmt_worker": {"qmt_protocol", "qmt_runtime", "qmt_terminal"},
    "qmt_windows": {"qmt_protocol", "qmt_runtime", "qmt_terminal"},
    "qmt_gateway": {"qmt_protocol", "qmt_runtime", "qmt_reading"},
    "qmt_archive": {"qmt_protocol", "qmt_runtime", "qmt_reading"},
    "qmt_standalone": {
        "qmt_protocol",
        "qmt_runtime",
        "qmt_reading",
        "qmt_terminal",
        "qmt_client",
        "qmt_producer",
        "qmt_worker",
        "qmt_gateway",
        "qmt_archive",
        "qmt_simulator",
    },
}
"""Each package and which others of the project it may import."""
ARROWS_ACROSS = {("producer/qmt_producer/replay", "qmt_reading")}
"""A producer whose source is the archive reads it as everybody does."""

XTQUANT_DOOR = "qmt_terminal"
NO_IO = {"asyncio", "http", "httpx", "redis", "requests", "rq", "socket", "sqlite3", "subprocess"}
"""What protocol, being free of I/O, may not import; `socket.gethostname` is let through below."""
GETHOSTNAME_ONLY = {"status.py"}

ORDER_WORDS = re.compile(
    r"xttrader|xttype|XtQuantTrader|order_stock|cancel_order|passorder|xtpythonclient",
    re.IGNORECASE,
)
"""Names by which xtquant trades. None may occur in code."""

FORBIDDEN = {
    "a package index": re.compile(
        r"pypi\.(org|python)|files\.pythonhosted|/simple/?\b.*index", re.I
    ),
    "an index option": re.compile(r"^\s*--(extra-)?index-url|--find-links|--trusted-host", re.M),
    "a path of one machine": re.compile(r"(?<![\w.])/(work|root|home/\w+|opt/(wheels|pypi))\b"),
}
PRIVATE_WORDS = {
    *("heal", "healed", "healer", "healing", "heals", "judge", "judged", "strange", "tending"),
    *("telling", "told", "want", "wanted", "wants", "wish", "wished", "wishes"),
}
"""Words that named several things each; docs/glossary.md has the ones that took their place."""
MAX_LINES = 700
GENERATED = {"sync_client.py"}


def package_folder(package: str) -> Path:
    return ROOT / package.removeprefix("qmt_") / package


def modules(package: str) -> list[Path]:
    return sorted(package_folder(package).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each absolutely imported name and its line; the import may hide in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield str(first.value), node.lineno


def imported(package: str) -> Iterator[tuple[Path, str, int]]:
    for path in modules(package):
        for name, line in imports(ast.parse(path.read_text("utf-8"))):
            yield path.relative_to(ROOT), name, line


def committed_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=120,
    ).stdout
    names = [name for name in listed.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_every_package_is_in_the_import_rule() -> None:
    found = {path.parent.name for path in ROOT.glob("*/qmt_*/__init__.py")}
    assert found == set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_run_one_way(package: str) -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path, name, line in imported(package)
        if (top := name.partition(".")[0]).startswith("qmt_")
        and top not in MAY_IMPORT[package] | {package}
        and (path.parent.as_posix(), top) not in ARROWS_ACROSS
    ]
    assert wrong == []


def test_no_modules_import_each_other() -> None:
    """Not even for types alone, or inside a function."""
    files = {name_of(path): path for package in MAY_IMPORT for path in modules(package)}
    graph = {name: imported_by(name, path, set(files)) for name, path in files.items()}
    circles = [circle for circle in components(graph) if len(circle) > 1]
    assert circles == []


def name_of(path: Path) -> str:
    """Return a module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(module: str, path: Path, known: set[str]) -> set[str]:
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{package}.{node.module or ''}".rstrip(".") if node.level else node.module or ""
            named = (f"{base}.{alias.name}" for alias in node.names)
            found.update(name if name in known else base for name in named)
    return (found & known) - {module}


def components(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """Yield what can be reached from each other, as Tarjan finds it."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    waiting: list[str] = []

    def visit(node: str) -> Iterator[set[str]]:
        number[node] = lowest[node] = len(number)
        waiting.append(node)
        for other in graph[node]:
            if other not in number:
                yield from visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in waiting:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            begin = waiting.index(node)
            yield set(waiting[begin:])
            del waiting[begin:]

    for node in graph:
        if node not in number:
            yield from visit(node)


@pytest.mark.parametrize("package", sorted(set(MAY_IMPORT) - {XTQUANT_DOOR, "qmt_simulator"}))
def test_only_terminal_imports_xtquant(package: str) -> None:
    wrong = [
        f"{path}:{line}"
        for path, name, line in imported(package)
        if name.partition(".")[0] == "xtquant"
    ]
    assert wrong == []


def test_the_simulator_imports_of_xtquant_nothing_but_its_bson() -> None:
    names = {name for _, name, _ in imported("qmt_simulator") if name.startswith("xtquant")}
    assert {name for name in names if not name.startswith("xtquant.xtbson")} == set()


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_nothing_can_send_an_order(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in modules(package)
        for match in ORDER_WORDS.finditer(code_only(path))
    ]
    assert wrong == []


def code_only(path: Path) -> str:
    """Return a module without comments and docstrings, where trading may be spoken of."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]
                one
                for one in body
                if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
            ] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))


def test_protocol_does_no_io() -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path, name, line in imported("qmt_protocol")
        if name.partition(".")[0] in NO_IO
        and not (path.name in GETHOSTNAME_ONLY and name == "socket")
    ]
    assert wrong == []


def test_a_folder_with_a_package_holds_nothing_else() -> None:
    """The folders lie on sys.path in an editable install: a stray module would shadow others."""
    for package in MAY_IMPORT:
        folder = package_folder(package).parent
        beside = {path.name for path in folder.iterdir()} - {"__pycache__"}
        assert beside == {package}


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_says_what_lives_in_it(package: str) -> None:
    docstring = ast.get_docstring(
        ast.parse((package_folder(package) / "__init__.py").read_text("utf-8"))
    )
    assert docstring is not None
    assert len(docstring) > 60
    assert (package_folder(package) / "py.typed").is_file()


def test_every_module_has_a_docstring_and_is_not_too_long() -> None:
    wrong = []
    for package in MAY_IMPORT:
        for path in modules(package):
            text = path.read_text("utf-8")
            if not ast.get_docstring(ast.parse(text)):
                wrong.append(f"{path.relative_to(ROOT)}: no docstring")
            if text.count("\n") > MAX_LINES and path.name not in GENERATED:
                wrong.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
    assert wrong == []


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_names_are_the_fields_own_words(package: str) -> None:
    wrong = []
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(node, "id", None) or getattr(node, "attr", None)
            name = name or getattr(node, "arg", None) or getattr(node, "name", None)
            if isinstance(name, str) and not PRIVATE_WORDS.isdisjoint(words_of(name)):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def words_of(name: str) -> set[str]:
    """Return the words of an identifier, in either way of writing."""
    return set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_"))


def test_no_committed_line_names_a_registry_or_a_machine() -> None:
    wrong = []
    for path in committed_files():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for what, pattern in FORBIDDEN.items():
            wrong += [
                f"{path.relative_to(ROOT)}: {what}: {match[0]}" for match in pattern.finditer(text)
            ]
    assert wrong == []


def test_links_between_pages_lead_somewhere() -> None:
    wrong = []
    for page in [path for path in committed_files() if path.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                wrong.append(f"{page.relative_to(ROOT)}: {target}")
    assert wrong == []


def test_scripts_are_listed_and_can_be_run() -> None:
    scripts = {path.name: path for path in (ROOT / "scripts").iterdir() if path.is_file()}
    listed = set(re.findall(r"^\| `([^`]+)` \|", scripts.pop("README.md").read_text("utf-8"), re.M))
    assert listed == set(scripts)
    for path in [*scripts.values(), ROOT / ".ci" / "run"]:
        if path.suffix != ".py":
            assert path.stat().st_mode & 0o111, path
            assert path.read_text("utf-8").startswith("#!/bin/sh\n"), path


def test_the_locks_are_hashed_and_hold_every_dependency() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    declared = [
        *project["project"]["dependencies"],
        *(one for extra in project["project"]["optional-dependencies"].values() for one in extra),
        *project["dependency-groups"]["dev"],
    ]
    wanted = {canonical(one) for one in declared} - {"qmt-redis-bridge"}
    locked = pins(ROOT / "requirements.lock")
    assert wanted <= {canonical(one) for one in locked}
    assert pins(ROOT / "requirements-gateway.lock") <= locked


def canonical(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def pins(lock: Path) -> set[str]:
    """Return the lock's ``name==version`` pins; each must have a hash."""
    found: set[str] = set()
    for block in re.split(r"\n(?=[a-z0-9])", lock.read_text("utf-8")):
        pin = re.match(r"[A-Za-z0-9._-]+==[^ ;\\]+", block)
        if pin:
            assert "--hash=sha256:" in block, pin[0]
            found.add(pin[0])
    return found
