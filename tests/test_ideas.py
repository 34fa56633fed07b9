"""Ideas in ten lines: each diff of notebooks/ideas applies to the modules as they are, compiles, and is small."""

import py_compile
import shutil
import subprocess

import pytest
from conftest import ROOT

IDEAS = ROOT / "notebooks" / "ideas"
DIFFS = sorted(IDEAS.glob("*.diff"))


def test_there_are_five_and_the_page_names_them():
    page = (ROOT / "notebooks" / "IDEAS.md").read_text(encoding="utf-8")
    assert len(DIFFS) == 5
    for diff in DIFFS:
        assert diff.name in page
        changed = [
            line for line in diff.read_text().splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
        ]
        assert all(line in page for line in changed), f"{diff.name}: the page shows another diff"


def test_the_page_shows_the_measured_table():
    table = (IDEAS / "results.md").read_text(encoding="utf-8").strip()
    assert table in (ROOT / "notebooks" / "IDEAS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("diff", DIFFS, ids=lambda path: path.stem)
def test_a_diff_applies_compiles_and_changes_at_most_ten_lines(diff, tmp_path):
    lines = diff.read_text().splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    assert 1 <= added + removed <= 10
    for name in ("grpo.py", "gepa_loop.py", "verify.py", "p2o.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    result = subprocess.run(["git", "apply", str(diff)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    name = lines[1].removeprefix("+++ b/")
    assert (tmp_path / name).read_text() != (ROOT / name).read_text()
    py_compile.compile(str(tmp_path / name), doraise=True)
