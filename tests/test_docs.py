"""What the pages tell people to type, open and read exists."""

import functools
import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_cli import written_recipe
from typer.main import get_command
from typer.testing import CliRunner

from adapt.data.coco import CocoSplit
from cli import app
from search.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]
FILES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}
GROUPS = ("data", "costs")  # commands of commands

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")
REPOSITORY_PATH = re.compile(
    r"(?<![\w./*-])(?:(?:adapt|search|export|bench|tests|recipes|docs|\.ci)/[\w./*-]*|\w+\.py\b)"
)


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def indented_lines(text: str) -> Iterator[str]:
    yield from re.findall(r"^ {4}(\S.*)$", without_fences(text), flags=re.M)


def block_lines(text: str) -> Iterator[str]:
    """Lines of code that stand by themselves."""
    yield from indented_lines(text)
    for _, content in FENCE.findall(text):
        yield from content.splitlines()


def inline_code(text: str) -> Iterator[str]:
    for span in INLINE.findall(without_fences(text)):
        yield " ".join(span.split())


def of_pages(find: Callable[[str], Iterator[str]], pattern: str) -> list[Any]:
    """What is found on all pages and has this form, with its page."""
    found = {(page, code) for page, text in TEXTS.items() for code in find(text)}
    return [
        pytest.param(page, code, id=f"{page}: {code}"[:90])
        for page, code in sorted(found)
        if re.match(pattern, code)
    ]


def arguments_of(line: str) -> list[str]:
    """The words after `adapt`, or after its module where torchrun starts it."""
    words = shlex.split(line, comments=True)
    start = words.index("cli") if "cli" in words else 0
    return words[start + 1 :]


def command_of(words: list[str]) -> tuple[str, ...]:
    return tuple(words[: 2 if words[0] in GROUPS else 1])


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


def options_of(help_text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", help_text))


ADAPT = r"(adapt [a-z]|torchrun .*-m cli [a-z])"
COMMAND_LINES, COMMANDS_IN_TEXT = of_pages(block_lines, ADAPT), of_pages(inline_code, ADAPT)
DRY_RUNS = sorted(
    {
        code.partition(" #")[0].rstrip().replace("my-recipe.toml", "RECIPE")
        for _, code in (found.values for found in (*COMMAND_LINES, *COMMANDS_IN_TEXT))
        if "--dry-run" in code
    }
)


def test_pages_show_commands_and_dry_runs() -> None:
    assert len(COMMAND_LINES) > 20
    assert len(DRY_RUNS) > 4


@pytest.mark.parametrize(("page", "line"), [*COMMAND_LINES, *COMMANDS_IN_TEXT])
def test_command_and_its_options_exist(page: str, line: str) -> None:
    words = arguments_of(line)
    asked = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert asked <= options_of(help_of(command_of(words))), page


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_command_line_has_all_that_its_command_needs(page: str, line: str) -> None:
    """Arguments that are missing, and values that an option does not take, are errors here."""
    command: Any = get_command(app)
    words = arguments_of(line)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("adapt", words)


@pytest.mark.parametrize(("page", "code"), of_pages(inline_code, "--[a-z]"))
def test_option_exists(page: str, code: str) -> None:
    """An option that is spoken of without its command belongs to one."""
    known = set().union(*(options_of(help_of(command)) for command in all_commands()))
    assert {word for word in code.split() if word.startswith("--")} <= known, page


@functools.cache
def all_commands() -> tuple[tuple[str, ...], ...]:
    command: Any = get_command(app)
    inner = ((group, name) for group in GROUPS for name in command.commands[group].commands)
    return (*((name,) for name in command.commands if name not in GROUPS), *inner)


@pytest.fixture(scope="module")
def stand_ins(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: CocoSplit
) -> tuple[Path, dict[str, str]]:
    """A folder to run in, and what stands for the names that the pages use."""
    folder = tmp_path_factory.mktemp("docs")
    recipe = str(written_recipe(folder, tiny_data))
    root, coco = tiny_data.annotations.parents[1], folder / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        annotations = coco / "annotations" / f"instances_{split}2017.json"
        shutil.copy(root / "annotations" / f"{split}.json", annotations)
        (coco / f"{split}2017").symlink_to(root / "images")
    shipped = {f"recipes/{path.name}": str(path) for path in ROOT.glob("recipes/*.toml")}
    names = {"RECIPE": recipe, "DATASET": str(root)}
    return folder, {**shipped, **names, "COCO2017": str(coco)}


@pytest.mark.parametrize(
    "line",
    [  # those of the paper's input take ten seconds
        pytest.param(line, marks=[pytest.mark.slow] if "coco" in line.lower() else [])
        for line in DRY_RUNS
    ],
)
def test_dry_run_runs(
    line: str, stand_ins: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = stand_ins
    monkeypatch.chdir(folder)
    before = set(folder.rglob("*"))
    result = CliRunner().invoke(app, [names.get(word, word) for word in arguments_of(line)])
    assert result.exit_code == 0, result.output
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("page", FILES)
def test_recipe_of_a_page_is_valid(page: str) -> None:
    for language, content in FENCE.findall(TEXTS[page]):
        if language == "toml":
            Recipe.from_dict(tomllib.loads(content))


@pytest.mark.parametrize("page", FILES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall(TEXTS[page]):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """Where links may lead on a page, by the rule of GitHub."""
    titles = re.findall(r"^#+ (.+)$", without_fences(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", FILES)
def test_files_of_the_repository_exist(page: str) -> None:
    text = TEXTS[page]  # not its fences: the tree names files in their folders
    for code in [*inline_code(text), *(line.partition(" #")[0] for line in indented_lines(text))]:
        for name in REPOSITORY_PATH.findall(code):
            assert list(ROOT.glob(name.rstrip("/."))), name


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`([A-Za-z_]+)`", TEXTS["CONTRIBUTING.md"])))
)
def test_name_in_the_code_exists(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", source) for source in sources()), name


@functools.cache
def sources() -> tuple[str, ...]:
    paths = [ROOT / "pyproject.toml", ROOT / "cli.py"]
    for package in ("adapt", "search", "export", "bench"):
        paths += [*ROOT.glob(f"{package}/**/*.py"), *ROOT.glob(f"{package}/**/*.toml")]
    return tuple(path.read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize("page", FILES)
def test_module_that_makes_a_figure_exists(page: str) -> None:
    for module in re.findall(r"python -m ([\w.]+)", TEXTS[page]):
        assert find_spec(module), module


@pytest.mark.parametrize("page", FILES)
def test_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for code in [*inline_code(TEXTS[page]), *block_lines(TEXTS[page])]:
        for target in re.findall(r"^make ([\w-]+)", code):
            assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_tree_of_the_code_is_that_of_the_sources() -> None:
    tree = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    page = TEXTS["docs/code.md"]
    assert page == tree["page_with"](page, tree["tree"]()), "run `python docs/tree.py`"


@pytest.fixture(scope="module")
def verified() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "verified.py"))


def test_page_of_what_was_verified_is_that_of_the_reports(verified: dict[str, Any]) -> None:
    reports = verified["reports"]()
    page = TEXTS["docs/verified.md"]
    assert page == verified["page"](reports), "run `python docs/verified.py`"
    assert [name for name, _ in reports] == [verified["name_of"](report) for _, report in reports]


def test_page_says_that_nothing_was_verified_on_a_gpu_until_a_report_is_of_one(
    verified: dict[str, Any],
) -> None:
    _, report = verified["reports"]()[0]
    gpu = {"gpu": {"name": "NVIDIA A100"}}
    failed = {"title": "tensorrt fp16: outputs", "status": "FAIL", "reason": "off | by 1; try"}
    machine = report["machine"] | {"device": report["machine"]["device"] | gpu}
    page = verified["page"]([("a.json", report | {"machine": machine, "steps": [failed]})])
    assert "Nothing was verified on a GPU" in TEXTS["docs/verified.md"]
    assert "Nothing was verified on a GPU" not in page
    assert "## NVIDIA A100" in page
    assert r"| tensorrt fp16 |  | outputs: **failed**: off \| by 1 |" in page


def test_readme_is_short_and_names_every_page() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 200
    linked = {target.partition("#")[0] for target in LINK.findall(TEXTS["README.md"])}
    assert set(FILES) - {"README.md"} <= linked


@pytest.mark.parametrize("page", [name for name in FILES if name != "README.md"])
def test_page_opens_with_the_question_that_it_answers(page: str) -> None:
    title, opening, *_ = TEXTS[page].split("\n\n")
    assert title.startswith("# ")
    assert opening.endswith("?")


@pytest.mark.parametrize("page", FILES)
def test_no_placeholder_is_left(page: str) -> None:
    assert "@@" not in TEXTS[page]
