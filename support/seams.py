"""The functions of the loop that a variant replaces, found by name: --advantage rloo, --loss my_file.py:my_loss."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from support.errors import UserError


@functools.cache
def find(option: str, name: str, default: Callable) -> Callable:
    """The function that `--option name` means: `default` if the name is empty, one of variants/<option>.py, or one of a
    file of the user's own.

    >>> find("loss", "", max)
    <built-in function max>
    """
    if not name:
        return default
    file, _, function = name.rpartition(":")
    try:
        if file:
            spec = importlib.util.spec_from_file_location(Path(file).stem, file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(f"variants.{option}")
        return getattr(module, function)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UserError(
            f"--{option} {name}: no such function ({error}); give a name of variants/{option}.py, or my_file.py:mine"
        ) from error
