"""The worked examples: of every module's docstrings, and of the Python blocks of README and handout."""

import doctest
import importlib
import re
import sys

import pytest
from conftest import ROOT

from variants import example

sys.path.insert(0, str(ROOT / "assignment"))  # its files import each other by name

FOLDERS = (".", "support", "tools", "tiny", "variants", "lab/studies", "lab", "assignment", "tests")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py")) if file.name != "test_examples.py"]
SOURCES = [file for file in FILES if ">>> " in file.read_text(encoding="utf-8")]
TEXTS = ("README.md", "assignment/HANDOUT.md", "docs/variants.md")


def name_of(file):
    """A file's name as the other tests import it, so that it is loaded once."""
    folder = file.parent.relative_to(ROOT)
    if str(folder) in (".", "assignment", "tests"):
        return file.stem
    return ".".join([*folder.parts, file.stem])


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_examples_of_docstrings_hold(file):
    known = vars(example) if file.is_relative_to(ROOT / "variants") else {}  # whose examples are made of its rollouts
    outcome = doctest.testmod(importlib.import_module(name_of(file)), extraglobs=known)
    assert outcome.failed == 0 < outcome.attempted


def blocks_of(text):
    """The Python blocks of a Markdown text."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def failures_of(text):
    """How many examples of a text's blocks do not hold. A block without a prompt is run as it is."""
    runner, known, failed = doctest.DocTestRunner(verbose=False), {}, 0
    for number, block in enumerate(blocks_of(text)):
        if ">>> " not in block:
            exec(compile(block, f"block {number}", "exec"), known)
            continue
        test = doctest.DocTestParser().get_doctest(block, known, f"block {number}", None, 0)
        failed += runner.run(test, clear_globs=False).failed
        known |= test.globs
    return failed


@pytest.mark.parametrize("name", TEXTS)
def test_the_python_blocks_of_the_texts_hold(name):
    assert failures_of((ROOT / name).read_text(encoding="utf-8")) == 0


def test_a_block_that_does_not_hold_would_be_noticed():
    assert failures_of("```python\nx = 3\n```\nand\n```python\n>>> x\n3\n>>> x + 1\n5\n```\n") == 1
    with pytest.raises(NameError):
        failures_of("```python\nnobody\n```\n")
