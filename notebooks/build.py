"""Execute the notebooks in place, and turn one into a text that can be edited.

    python notebooks/build.py                  # execute all of them (make notebooks)
    python notebooks/build.py 1 3              # some
    python notebooks/build.py --edit 3         # write 3_....py beside it: the cells without outputs, in "percent" format
    python notebooks/build.py 3                # take the cells of that file, delete it, and execute
    python notebooks/build.py --address URL    # where hosted notebooks clone from: into all first cells, with a badge

The .ipynb files are the only source. In a text, `# %%` begins a code cell and `# %% [markdown]` a text cell, whose lines
are comments. Where only text cells have changed, the notebook keeps its outputs and is not executed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Cells = list[tuple[str, str]]  # ("markdown" or "code", its text)


def read(path: Path) -> Cells:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def as_text(cells: Cells) -> str:
    """
    >>> as_text([("markdown", "# Title\\n\\nText"), ("code", "x = 1")])
    '# %% [markdown]\\n# # Title\\n#\\n# Text\\n\\n# %%\\nx = 1\\n'
    """
    blocks = []
    for kind, text in cells:
        if kind == "markdown":
            text = "\n".join(f"# {line}".rstrip() for line in text.split("\n"))
        blocks.append(f"# %%{' [markdown]' if kind == 'markdown' else ''}\n{text}\n")
    return "\n".join(blocks)


def cells_of(text: str) -> Cells:
    """The inverse of `as_text`.

    >>> cells_of(as_text([("markdown", "# Title\\n\\nText"), ("code", "x = 1")]))
    [('markdown', '# Title\\n\\nText'), ('code', 'x = 1')]
    """
    cells = []
    for block in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        body = body.strip("\n")
        cells.append((kind, re.sub(r"^# ?", "", body, flags=re.MULTILINE) if kind == "markdown" else body))
    return cells


def solutions_of(text: str) -> list[str]:
    """The code of the folded solutions in a text cell; tests/test_notebooks.py runs it after the notebook's cells."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def joined(outputs: list) -> list:
    """Neighbouring pieces of printed text as one output, however they happened to arrive."""
    kept = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def is_widget(output) -> bool:
    """A slider lives as long as its kernel does; on the page stands the picture of the cell before it."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def execute(path: Path, cells: Cells) -> None:
    """Write these cells with the outputs of a fresh kernel."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    for i, (kind, text) in enumerate(cells, start=1):
        new = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(new(text, id=f"cell-{i:02d}"))
    client = NotebookClient(notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran is nobody's business, and changes every time
        if cell.cell_type == "code":
            cell.outputs = joined([o for o in cell.outputs if o.get("name") != "stderr" and not is_widget(o)])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = nbformat.writes(notebook) + "\n"
    for machine_path in (str(ROOT), str(Path.home())):
        if machine_path in text:
            raise ValueError(f"{path.name}: an output holds the path {machine_path}")
    path.write_text(text, encoding="utf-8")


def replace_text(path: Path, cells: Cells) -> None:
    """Write these cells, which hold the same code as before, and keep the outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell, (_, text) in zip(notebook["cells"], cells, strict=True):
        cell["source"] = text.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def with_address(cells: Cells, address: str, name: str) -> Cells:
    """The cells with this address in the first code cell and, if it is one of GitHub, a badge under the title.

    >>> cells = [("markdown", "# Title\\n\\nText"), ("code", 'REPOSITORY = ""')]
    >>> with_address(cells, "https://github.com/me/p2o", "1.ipynb")[1][1]
    'REPOSITORY = "https://github.com/me/p2o"'
    """
    (_, title), (_, start), *others = cells
    title = re.sub(r"\n\n\[!\[.*", "", title)  # an earlier badge
    place = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
    if place:
        colab = "https://colab.research.google.com"
        target = f"{colab}/github/{place[1]}/blob/main/notebooks/{name}"
        title = title.replace("\n", f"\n\n[![open in Colab]({colab}/assets/colab-badge.svg)]({target})\n", 1)
    start = re.sub(r'^REPOSITORY = ".*"', f'REPOSITORY = "{address}"', start, flags=re.MULTILINE)
    return [("markdown", title), ("code", start), *others]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="of the notebooks; all if none is given")
    parser.add_argument("--edit", action="store_true", help="write the cells as a text beside the notebook")
    parser.add_argument("--address", help="of the repository, for hosted notebooks")
    arguments = parser.parse_args()
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if arguments.numbers and path.stem[0] not in arguments.numbers:
            continue
        started, old, text = time.time(), read(path), path.with_suffix(".py")
        if arguments.edit:
            text.write_text(as_text(old), encoding="utf-8")
        elif arguments.address is not None:
            replace_text(path, with_address(old, arguments.address, path.name))
        else:
            cells = cells_of(text.read_text(encoding="utf-8")) if text.exists() else old
            same_code = [kind for kind, _ in cells] == [kind for kind, _ in old] and all(
                cell == before for cell, before in zip(cells, old, strict=True) if cell[0] == "code"
            )
            if text.exists() and same_code:
                replace_text(path, cells)
            else:
                execute(path, cells)
            text.unlink(missing_ok=True)
        print(f"{(text if arguments.edit else path).relative_to(ROOT)}: {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
