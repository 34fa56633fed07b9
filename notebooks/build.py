"""Turn the sources in notebooks/src/ into notebooks, and execute them.

    python notebooks/build.py            # all of them (make notebooks)
    python notebooks/build.py 1 3        # some
    python notebooks/build.py --text     # after a change of text cells: put them in, keep the outputs

A source is a Python file in "percent" format: `# %%` begins a code cell, `# %% [markdown]` a text cell whose lines are
comments, and `# %% [start]` is the first cell of every notebook. A change of a notebook is a change of lines in a diff,
and tests/test_notebooks.py runs the same cells.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

START = """\
# At home this finds the repository. In a fresh hosted notebook it clones and installs it first.
import os
import subprocess
import sys

if not os.path.exists("grpo.py") and not os.path.exists("../grpo.py"):
    address = os.environ.get("P2O_REPOSITORY") or input("Where did you find this notebook? The repository's address: ")
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", address, "p2o"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", "p2o/requirements.txt"], check=True)
    os.chdir("p2o")
elif not os.path.exists("grpo.py"):
    os.chdir("..")  # from notebooks/ to the repository's root
sys.path.insert(0, os.getcwd())"""


def cells_of(source: str) -> list[tuple[str, str]]:
    """[("markdown" or "code", text)]

    >>> cells_of("# %% [markdown]\\n# # Title\\n# %%\\nx = 1\\n")
    [('markdown', '# Title'), ('code', 'x = 1')]
    """
    cells = []
    for block in re.split(r"^# %%", source, flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        if head.strip() == "[markdown]":
            cells.append(("markdown", re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)))
        elif head.strip() == "[start]":
            cells.append(("code", START))
        else:
            cells.append(("code", body.strip("\n")))
    return cells


def sources() -> list[Path]:
    return sorted((HERE / "src").glob("[0-9]*.py"))


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


def solutions_of(text: str) -> list[str]:
    """The code of the folded solutions in a text cell; tests/test_notebooks.py runs it after the notebook's cells."""
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def build(source: Path) -> Path:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    for i, (kind, text) in enumerate(cells_of(source.read_text(encoding="utf-8")), start=1):
        new = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(new(text, id=f"cell-{i:02d}"))
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran is nobody's business, and changes every time
        if cell.cell_type == "code":
            cell.outputs = joined([o for o in cell.outputs if o.get("name") != "stderr" and not is_widget(o)])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    target = HERE / f"{source.stem}.ipynb"
    text = nbformat.writes(notebook) + "\n"
    for path in (str(ROOT), str(Path.home())):
        if path in text:
            raise ValueError(f"{target.name}: an output holds the path {path}")
    target.write_text(text, encoding="utf-8")
    return target


def replace_text(source: Path) -> Path:
    """The text cells of the source in the notebook that is there; the code must be the same."""
    target = HERE / f"{source.stem}.ipynb"
    notebook = json.loads(target.read_text(encoding="utf-8"))
    cells = cells_of(source.read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if code != [text for kind, text in cells if kind == "code"] or len(cells) != len(notebook["cells"]):
        raise ValueError(f"{target.name}: the code has changed; build it without --text")
    for cell, (_, text) in zip(notebook["cells"], cells, strict=True):
        cell["source"] = text.splitlines(keepends=True)
    target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    wanted = [argument for argument in sys.argv[1:] if argument != "--text"]
    make = replace_text if "--text" in sys.argv else build
    for source in sources():
        if not wanted or source.stem[0] in wanted:
            started = time.time()
            print(f"{make(source).relative_to(ROOT)}: {time.time() - started:.0f} s", flush=True)
