"""Where the boxed answers of a text are."""

from __future__ import annotations

import re

_BOX_TOKEN = re.compile(r"\\\\?boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` skips the braces in \{ and \}


def boxes_in(text: str) -> list[tuple[int, int, str]]:
    """(start, end, contents) of the outermost closed, non-empty boxes, in one pass however many braces are open."""
    open_braces: list[tuple[int, int] | None] = []  # a box as (start, start of its contents); another brace as None
    boxes: list[tuple[int, int, str]] = []
    for token in _BOX_TOKEN.finditer(text):
        kind = token.group()
        if kind == "{":
            open_braces.append(None)
        elif kind == "}" and open_braces:
            box = open_braces.pop()
            if box and (contents := text[box[1] : token.start()].strip()):
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()  # it lies inside this one
                boxes.append((box[0], token.end(), contents))
        elif kind.endswith("{") and "boxed" in kind:
            open_braces.append((token.start(), token.end()))
    return boxes
