"""The pages of `docs`: their code runs from top to bottom and prints what they show."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from tables import for_each

from ufm.cli import main

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
FILE = re.compile(r"# (\w+\.py)\n")  # the first line of a block that belongs to a file
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")
TIMED = "work"  # a line of results that has seconds and counts of steps in it
SAME = 1e-4  # relative difference of numbers that are shown with few digits
TINY = 1e-7  # below it numbers are rounding: gaps, violations

pytestmark = pytest.mark.skipif(not PAGES, reason="the pages are not part of this distribution")


class Block(NamedTuple):
    """A block of code of a page, and the output that the page shows after it."""

    language: str
    code: str
    shown: str | None


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    following = [*found[1:], ("", "")]
    return [
        Block(language, code, output if after == "text" else None)
        for (language, code), (after, output) in zip(found, following, strict=True)
        if language != "text"
    ]


def written(page: str, folder: Path) -> None:
    """Write the files that a page tells its reader to write."""
    for block in blocks(page):
        if block.language == "python" and (named := FILE.match(block.code)):
            with (folder / named[1]).open("a", encoding="utf-8") as file:
                file.write(block.code)


def printed(page: str) -> list[tuple[Block, str]]:
    """Return what the blocks of a page print that are run one after the other."""
    names: dict[str, object] = {}
    outputs = []
    for block in blocks(page):
        if block.language not in ("python", "console") or FILE.match(block.code):
            continue
        with contextlib.redirect_stdout(io.StringIO()) as caught:
            if block.language == "python":
                exec(compile(block.code, "page", "exec"), names)
            else:
                for line in block.code.splitlines():
                    assert main(shlex.split(line.removeprefix("$ ufm "))) == 0, line
        outputs.append((block, caught.getvalue()))
    return outputs


def same(shown: str, found: str) -> bool:
    """Return whether two texts have the same words, and numbers that agree."""
    one, other = (
        "\n".join(line.rstrip() for line in text.strip().splitlines() if not line.startswith(TIMED))
        for text in (shown, found)
    )
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (one, other)]
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (one, other)]
    return words[0] == words[1] and all(
        abs(a - b) <= max(SAME * max(abs(a), abs(b)), TINY) for a, b in zip(*numbers, strict=True)
    )


@for_each(
    ("shown", "found", "equal"),
    [
        ("gap 1.2e-12: holds", "gap 3.4e-14: holds", True),
        ("value 0.25\nwork 3 s", "value 0.250001\nwork 9 s", True),
        ("value 0.25", "value 0.26", False),
        ("gap 1.2e-12: holds", "gap 1.2e-12: does not hold", False),
        ("1 2", "1", False),
    ],
)
def test_texts_are_told_apart(shown: str, found: str, equal: bool) -> None:
    assert same(shown, found) == equal


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_is_python_and_its_output_is_shown(path: Path) -> None:
    found = blocks(path.read_text(encoding="utf-8"))
    for block in found:
        if block.language == "python":
            compile(block.code, path.name, "exec")
            assert ("print(" in block.code) == (block.shown is not None), block.code
    assert sum(block.shown is not None for block in found) >= 5


@pytest.fixture
def readers_settings() -> Iterator[None]:
    """JAX as it is by default, in all threads; the tests' own settings are stricter."""
    strict = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", strict[0])
    jax.config.update("jax_numpy_rank_promotion", strict[1])


@pytest.mark.slow
@pytest.mark.usefixtures("readers_settings")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_prints_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = path.read_text(encoding="utf-8")
    written(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block, output in printed(page):
        assert same(block.shown or "", output), f"{block.code}\n{output}"
