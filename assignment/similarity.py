"""Which submissions have more in common than the assignment explains? A note for a conversation, not a verdict."""

from __future__ import annotations

import csv
import io
import keyword
import tokenize
from collections import Counter
from itertools import combinations
from pathlib import Path

LENGTH = 6  # tokens in a row
LEAST = 0.5  # share of common rows from which on a pair is written down
COMMON = 0.3  # a row that more than this share of a class has is the usual way to write it


def shingles(source: str) -> set[tuple[str, ...]]:
    """Rows of LENGTH tokens, in which every name is alike: renaming hides nothing.

    >>> shingles("a = b + c * d") == shingles("x = y + z * w  # mine")
    True
    """
    words = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME:
                words.append(token.string if keyword.iskeyword(token.string) else "name")
            elif token.type in (tokenize.OP, tokenize.NUMBER):
                words.append(token.string)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass  # as far as it goes
    return {tuple(words[i : i + LENGTH]) for i in range(len(words) - LENGTH + 1)}


def pairs(sources: dict[str, set], known: set) -> list[tuple[float, str, str]]:
    """(share of the smaller one's own rows that the other has, one, other), the most alike first.

    `known` is what was given out and what the reference says: in a right solution that proves nothing.
    """
    seen = Counter(row for rows in sources.values() for row in rows)
    most = max(2, COMMON * len(sources))
    own = {name: {row for row in rows - known if seen[row] <= most} for name, rows in sources.items()}
    found = []
    for one, other in combinations(own, 2):
        smaller = min(len(own[one]), len(own[other]))
        share = len(own[one] & own[other]) / smaller if smaller else 0.0
        if share >= LEAST:
            found.append((share, one, other))
    return sorted(found, reverse=True)


def write_note(folders: dict[str, Path], reference: Path, file: Path) -> None:
    """similar.csv: pairs of submissions, and how much of what is neither given nor usual they share."""
    modules = ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py")

    def rows_of(folder: Path) -> set:
        return set().union(*(shingles((folder / name).read_text("utf-8", "replace")) for name in modules))

    found = pairs({name: rows_of(folder) for name, folder in folders.items()}, rows_of(reference))
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["share", "one", "other"])
        writer.writerows([f"{share:.2f}", one, other] for share, one, other in found)
