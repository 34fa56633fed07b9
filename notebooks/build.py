"""Execute the notebooks in place, or say where hosted ones clone from.

    python notebooks/build.py                  # execute all of them (make notebooks)
    python notebooks/build.py 1 3              # some
    python notebooks/build.py --address URL    # into all first cells, with a badge under the title

The .ipynb files are the only source.
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
    """The cells with this address in the first code cell and, if it is one of GitHub, a badge under the title."""
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
    parser.add_argument("--address", help="of the repository, for hosted notebooks")
    arguments = parser.parse_args()
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if arguments.numbers and path.stem[0] not in arguments.numbers:
            continue
        started, cells = time.time(), read(path)
        if arguments.address is not None:
            replace_text(path, with_address(cells, arguments.address, path.name))
        else:
            execute(path, cells)
        print(f"{path.relative_to(ROOT)}: {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
