"""The assignment grades: the reference gets all points, an empty version none, a usual mistake costs just its part."""

import subprocess
import sys
import zipfile
from xml.etree import ElementTree

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "assignment"))

import grade  # noqa: E402
import make  # noqa: E402

FULL = {part: points for part, (_, points) in grade.PARTS.items()}

# name: (part, file, (what the reference says, what the mistake says), ...)
MISTAKES = {
    "advantages: wrong axis": (1, "grpo.py", ("rewards.view(-1, group_size)", "rewards.view(group_size, -1).T")),
    "advantages: population std": (
        1,
        "grpo.py",
        ("groups.std(dim=1, keepdim=True)", "groups.std(dim=1, keepdim=True, correction=0)"),
    ),
    "advantages: mean of the batch": (1, "grpo.py", ("groups.mean(dim=1, keepdim=True)", "groups.mean()")),
    "loss: mask after the mean": (
        2,
        "grpo.py",
        ("return sums.sum() / tokens", "return (per_token.mean() * mask).sum() / mask.sum()"),
    ),
    "loss: weighted tokens leave the denominator": (
        2,
        "grpo.py",
        (
            "return aggregate(per_token, mask, aggregation, whole), metrics",
            "mask = mask if token_weight is None else mask * token_weight\n"
            "    return aggregate(per_token, mask, aggregation, whole), metrics",
        ),
    ),
    "loss: optimistic clip": (2, "grpo.py", ("pessimistic = torch.max(", "pessimistic = torch.min(")),
    "loss: dual clip whatever the sign": (
        2,
        "grpo.py",
        (
            "torch.where(advantages < 0, torch.min(-advantages * dual_clip, pessimistic), pessimistic)",
            "torch.min(-advantages * dual_clip, pessimistic)",
        ),
    ),
    "weight: ratio the other way round": (
        3,
        "grpo.py",
        ("ratio = (bare_logprobs - templated_logprobs).clamp", "ratio = (templated_logprobs - bare_logprobs).clamp"),
    ),
    "weight: the ratio itself": (3, "grpo.py", ("(bounded == ratio).to(ratio.dtype)", "(bounded == ratio) * ratio")),
    "log-probs: off by one in the shift": (
        4,
        "grpo.py",
        ("positions = [len(c) - 1 + t for", "positions = [len(c) + t - 2 for"),
    ),
    "log-probs: temperature forgotten": (4, "grpo.py", ("head(hidden).float() / temperature", "head(hidden).float()")),
    "cover: what is covered counts again": (
        5,
        "gepa_loop.py",
        (
            "gains = [len(solved - covered) for solved in solves]\n        if not any(gains):",
            "gains = [len(s) * (k not in chosen) for k, s in enumerate(solves)]\n        if not any(gains):",
        ),
    ),
    "cover: last one on ties": (
        5,
        "gepa_loop.py",
        ("best = gains.index(max(gains))", "best = len(gains) - 1 - gains[::-1].index(max(gains))"),
    ),
    "assignment: dev questions draw from all": (
        6,
        "gepa_loop.py",
        ("if question_id in evolution.dev_ids:", "if False:"),
    ),
    "assignment: weights forgotten": (
        6,
        "gepa_loop.py",
        ("rng.choices(pool, [weights[i] for i in pool], k=draws)", "rng.choices(pool, k=draws)"),
    ),
    "assignment: one draw for the whole group": (
        6,
        "gepa_loop.py",
        ("draws = 1 if cfg.one_template_per_group else", "draws = 1 or"),
    ),
    "reward: any right box earns it": (7, "verify.py", ("float(correct and well_formed)", "float(correct)")),
    "reward: a copy earns it": (7, "verify.py", (" and not _is_copied(answer, reference, question)", "")),
    "reward: thinking counts": (7, "verify.py", ("_boxes(_after_thinking(response)) for", "_boxes(response) for")),
    "reward: compares strings": (
        7,
        "verify.py",
        ("_verdicts(pairs)", "[answer == reference for answer, reference in pairs]"),
    ),
    "loop: the templated context is trained": (
        8,
        "p2o.py",
        (
            "trained = [grpo.chat_ids(policy, q.text) for q, _ in pairs] if cfg.distill else sampled",
            "trained = sampled",
        ),
    ),
    "loop: near-hard always": (8, "p2o.py", ("most = 1 if cfg.near_hard else 0", "most = 1")),
    "loop: the hard set grows for ever": (8, "p2o.py", ("            state.hard = []\n", "")),
    "loop: the same seed for every batch": (
        8,
        "p2o.py",
        ('seed_for(cfg, "rollout", step)', 'seed_for(cfg, "rollout", 0)'),
    ),
    "loop: no templates in the rollouts": (
        8,
        "p2o.py",
        ("chosen, state.templates, cfg, seed", "chosen, {}, cfg, seed"),
    ),
    "loop: no checkpoint": (8, "p2o.py", ("        run.save(state)\n", "")),
    "loop: evolution in the baseline, too": (
        8,
        "p2o.py",
        ('hard, cfg, epoch, run) if cfg.method == "p2o" else {}', "hard, cfg, epoch, run)"),
    ),
}


@pytest.fixture(scope="module")
def worker():
    with grade.Worker() as worker:
        yield worker


def submission(folder, solved=True):
    """The five files of a submission."""
    folder.mkdir()
    for name in make.MODULES:
        source = (ROOT / name).read_text()
        (folder / name).write_text(source if solved else make.without_solutions(source))
    (folder / "adapters.py").write_text((ROOT / "assignment" / "adapters.py").read_text())
    return folder


def plant(folder, file, *replacements):
    source = (folder / file).read_text()
    for right, wrong in replacements:
        assert source.count(right) == 1, right
        source = source.replace(right, wrong)
    (folder / file).write_text(source)


def test_the_reference_gets_full_marks(worker, tmp_path):
    outcomes = grade.grade(submission(tmp_path / "student"), worker)
    assert grade.points(outcomes) == FULL and sum(FULL.values()) == 100
    assert all(check["hint"] for checks in outcomes.values() for check in checks)


def test_the_empty_version_gets_none(worker, tmp_path):
    outcomes = grade.grade(submission(tmp_path / "student", solved=False), worker)
    assert set(grade.points(outcomes).values()) == {0}
    assert not any(check["passed"] for checks in outcomes.values() for check in checks)
    assert grade.report(outcomes).count("not written yet") == len(grade.PARTS)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_usual_mistake_costs_its_part_and_no_other(mistake, worker, tmp_path):
    part, file, *replacements = MISTAKES[mistake]
    folder = submission(tmp_path / "student")
    plant(folder, file, *replacements)
    parts = (8,) if part == 8 else tuple(range(1, 8))  # part 8 runs p2o.py alone, the others do not run it
    outcomes = grade.grade(folder, worker, parts)
    assert grade.points(outcomes) == {each: FULL[each] * (each != part) for each in parts}
    assert "hint: " in grade.report(outcomes)


def test_a_loop_without_end_and_a_dead_process_cost_their_part(tmp_path):
    folder = submission(tmp_path / "student")
    plant(folder, "gepa_loop.py", ("if not any(gains):", "if False:"))
    plant(folder, "verify.py", ('questions = questions or [""] * len(responses)', "import os; os._exit(3)"))
    with grade.Worker() as worker:
        worker.run(folder, 1)  # its start is not part of the limit
        outcomes = {5: worker.run(folder, 5, limit=3), 7: worker.run(folder, 7), 6: worker.run(folder, 6)}
    assert grade.points(outcomes) == {5: 0, 7: 0, 6: 10}
    assert "longer than 3 s" in grade.report(outcomes) and "ended with code 3" in grade.report(outcomes)


def test_from_make_to_the_zip(tmp_path):
    """The commands behind `make assignment` and `make grade`: a student's folder, part 1 solved, graded and packed."""

    def run(script, *arguments):
        command = [sys.executable, str(ROOT / "assignment" / script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    folder = tmp_path / "student"
    assert run("make.py", folder).returncode == 0
    assert run("make.py", folder).returncode == 2  # nobody's work is written over
    source = (folder / "grpo.py").read_text()
    assert "# --- solution" not in source and 'NotImplementedError("part 1: group_advantages")' in source
    solved = "groups = rewards.view(-1, group_size)\n    centred = groups - groups.mean(dim=1, keepdim=True)\n"
    solved += "    if scale_by_std:\n        centred = centred / (groups.std(dim=1, keepdim=True) + eps)\n"
    plant(
        folder,
        "grpo.py",
        ('raise NotImplementedError("part 1: group_advantages")', solved + "    return centred.view(-1)"),
    )
    result = run("grade.py", folder)
    assert result.returncode == 0 and "total                           10 of 100" in result.stdout
    suites = ElementTree.parse(folder / "grade.xml").getroot()
    assert [int(suite.get("failures")) > 0 for suite in suites] == [False] + [True] * 7
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted([*grade.SUBMITTED, "grade.xml"])
    assert run("grade.py", tmp_path / "nowhere").returncode == 2


def test_a_submission_is_graded_from_its_zip(worker, tmp_path):
    folder = submission(tmp_path / "student")
    (folder / "grade.xml").write_text("<testsuites/>")
    (tmp_path / "unpacked").mkdir()
    grade.unpack(grade.pack(folder), tmp_path / "unpacked")
    assert grade.points({1: worker.run(tmp_path / "unpacked", 1)}) == {1: 10}


def test_the_students_own_adapters_are_used(worker, tmp_path):
    folder = submission(tmp_path / "student")
    plant(folder, "grpo.py", ("def group_advantages(", "def my_advantages("))
    assert grade.points({1: worker.run(folder, 1)}) == {1: 0}
    plant(folder, "adapters.py", ("return grpo.group_advantages(", "return grpo.my_advantages("))
    assert grade.points({1: worker.run(folder, 1)}) == {1: 10}


def test_a_marker_in_a_wrong_place_is_refused():
    with pytest.raises(SyntaxError, match="marker"):
        make.without_solutions(
            'def f(x):\n    "Doubles."\n    y = x\n    # --- solution: part 3 ---\n    return 2 * y\n'
        )


def test_every_part_has_a_marker_and_an_adapter():
    found = {part: name for file in make.MODULES for *_, part, name in make.solutions((ROOT / file).read_text())}
    assert set(found) == set(grade.PARTS)
    adapters = (ROOT / "assignment" / "adapters.py").read_text()
    assert all(f"def {name}(" in adapters for name in found.values() if not name.startswith("_"))
