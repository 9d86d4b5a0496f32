"""The reference says all that there is: keys of cfgs, options, variables of the environment, extras, declarations."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import click
import pytest

import dnc.opencv
import dnc.runtime
from dnc.cli import cli
from dnc.destinations import destinations
from dnc.passes import passes
from dnc.targets import targets
from docs._ext import commands, cpp, extras, headers, made, plugins
from docs._ext.reading import recorded
from docs._ext.sections import EVERYWHERE, documented, kinds_of_sections
from docs._ext.text import prose
from tests import ROOT

SECTIONS = kinds_of_sections()


@cache
def plugin_pages() -> Mapping[str, str]:
    return plugins.pages()


@pytest.mark.parametrize("name", SECTIONS)
def test_keys_of_a_section_are_those_that_are_read(name: str) -> None:
    """A key that `parse` asks for and that `Keys:` lacks is one that nobody finds; one more is a promise."""
    read = recorded()[0].get(name, {})
    said = documented(SECTIONS[name])
    hint = f"what `Keys:` of [{name}] says, and what is read of it in tests/networks.py, cfg/ and tests/golden/"
    assert set(said) - set(EVERYWHERE) == set(read) - set(EVERYWHERE), hint
    assert all(text.endswith(".") for text in said.values())


@pytest.mark.parametrize(
    ("folder", "registry"), [("targets", targets), ("destinations", destinations), ("passes", passes)]
)
def test_every_declared_option_has_its_text(folder: str, registry: Mapping[str, type]) -> None:
    for name, kind in registry.items():
        page = plugin_pages()[f"reference/{folder}/{name}.md"]
        for option in kind.known_options:  # type: ignore[attr-defined]
            assert f"`{option.name}={option.default}`\n: " in page
            assert prose(option.summary)[1:] in page
        assert f"[`{name}`]({name}.md)" in plugin_pages()[f"reference/{folder}/index.md"]


def test_every_option_of_every_command() -> None:
    made_pages = commands.pages()
    context = click.Context(cli, info_name="dnc", **cli.context_settings)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        page = made_pages[f"reference/commands/{name}.md"]
        inner = command.commands.values() if isinstance(command, click.Group) else [command]
        # Those that every command has are on the page of `dnc`.
        shown = [option for each in inner for option in each.params if not getattr(option, "hidden", False)]
        options = {word for option in shown for word in option.opts if word.startswith("-")}
        assert all(re.search(rf"\{{option\}}.* ?{word}\b", page) for word in options), name


def test_remarks_of_a_pass_are_found() -> None:
    page = plugin_pages()["reference/passes/trim-kernels.md"]
    assert "- … trimmed to …" in page
    assert "- its weights are no constant" in page
    assert "[`onnx`](../targets/onnx.md) with `int8`, `mixed`" in plugin_pages()["reference/passes/quantize.md"]


_VARIABLE = re.compile(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|TMPDIR|TEMP|TMP|HOME|PATH|PYTHONPATH)"')
NO_VARIABLES = {"ENGINE_CLASSIC", "MAX_SIDE", "MODEL_JSON", "CUDA_RUNTIME"}
OF_CHILDREN = {"OMP_NUM_THREADS", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT"}
"""What dnc sets in processes of its own, or as properties of OpenVINO."""


def test_every_variable_of_the_environment() -> None:
    """Words in capitals, in files that read or set the environment."""
    found = set()
    for folder in ("dnc", "passes", "targets", "embed"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".cpp", ".hpp"):
                text = path.read_text("utf-8")
                if re.search(r"\benviron\b|getenv", text):
                    found |= set(_VARIABLE.findall(text))
    assert {"DNC_CACHE", "DNC_ISA", "DNC_IMAGE_PIXELS"} <= found
    page = (ROOT / "docs/reference/environment.md").read_text("utf-8")
    assert not {name for name in found - NO_VARIABLES - OF_CHILDREN if f"`{name}`" not in page}


def test_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(extras.FOR) == set(project["optional-dependencies"])


def test_every_declaration_of_the_headers() -> None:
    header = (ROOT / "embed/include/dnc.h").read_text("utf-8")
    page = headers.c_page(header)
    functions = re.findall(r"^DNC_API [^(;]*?(\w+)\(", header, re.MULTILINE)
    assert len(functions) > 30
    for name in functions:
        assert re.search(rf"^(::::\{{c:function\}} )?[\w ]+[* ]+{name}\(", page, re.MULTILINE), name
    for name in re.findall(r"\} (dnc_\w+);", header):
        assert re.search(rf"\{{c:(struct|enum)\}} {name}$", page, re.MULTILINE), name
    page = cpp.cpp_page((ROOT / "embed/include/dnc.hpp").read_text("utf-8"))
    for declaration in (
        "{cpp:class} dnc::Engine\n\nAn engine folder or package, opened. Movable.",
        "{cpp:function} explicit Engine(const std::string& folder, const Options& options = Options())",
        "{cpp:function} void reset()\n\nForgets",
        "{cpp:member} float center_x = 0\n::::\n\n::::{cpp:member} float center_y = 0\n::::",
        "{cpp:member} bool trust = false\n\na package's machine code may run",
    ):
        assert declaration in page
    assert "handle_" not in page
    assert "detail" not in page


def test_git_ignores_what_is_made() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    for folder in made.FOLDERS:
        place = Path("/docs") / folder
        assert f"{place}/" in ignored or f"{place.parent}/*/" in ignored


def test_every_public_name_of_python() -> None:
    """`__all__` of what applications import: each has its directive, or is named as another page's."""
    for module, page in ((dnc, "python-dnc"), (dnc.runtime, "python-runtime"), (dnc.opencv, "python-opencv")):
        text = (ROOT / f"docs/reference/{page}.md").read_text("utf-8")
        assert not [name for name in module.__all__ if not re.search(rf"\b{name}\b", text)], page
