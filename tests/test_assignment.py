"""The assignment grades: the reference gets all points, mistakes cost their part and are named, cheats earn nothing."""

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from xml.etree import ElementTree

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "assignment"))

import cases  # noqa: E402
import final  # noqa: E402
import grade  # noqa: E402
import make  # noqa: E402
from mistakes import MISTAKES, plant  # noqa: E402
from process import NotLocked, Process  # noqa: E402

from lab.mutate_assignment import EQUIVALENT, FILES, graded_mutants, lost, mutants, why_equivalent  # noqa: E402

FULL = grade.WORTH
REFERENCE = make.reference()


@pytest.fixture(scope="module")
def process():
    with Process() as process:
        yield process


class Once:
    """A process that is asked each question about the same files once, and says what it said when asked again.

    To start a submission's process takes longer than most of its answers.
    """

    def __init__(self, process):
        self.process, self.sources, self.said = process, {}, {}

    def folder(self, files):
        folder = self.process.folder(files)
        self.sources[folder] = json.dumps(files, sort_keys=True)
        return folder

    def replies(self, folder, cases, seconds, below=None):
        said, asked, replies = self.said.setdefault((self.sources[folder], below), {}), [], None
        try:
            for case in cases:
                question = json.dumps([case["call"], case["inputs"]])
                if question not in said:
                    asked.append(case)
                    replies = replies or self.process.replies(folder, iter(asked.pop, None), seconds, below)
                    said[question] = next(replies)
                yield said[question]
                if "died" in said[question]:
                    return
        finally:
            if replies:
                replies.close()


@pytest.fixture(scope="module")
def grader(process):
    """The instructor's, under a seed of its own. Only what fails depends on it, so a failure can be repeated."""
    grader = grade.secret_grader(process, seed=11)
    grader.mistaken = make.Diagnosis(Once(process), grader.cases)
    return grader


@pytest.fixture(scope="module")
def grader_that_asks_once(grader):
    """The same. What a mistake has answered to the diagnosis, it need not be asked again as a submission."""
    return grade.Grader(grader.mistaken.process, grader.cases, grader.mistaken, grader.below)


def submission(folder, files=REFERENCE):
    folder.mkdir()
    for name, source in files.items():
        (folder / name).write_text(source)
    return folder


def changed(file, right, wrong):
    source = REFERENCE[file]
    assert source.count(right) == 1, right
    return REFERENCE | {file: source.replace(right, wrong)}


# ----------------------------------------------------------------------------------------------------------- it grades


def test_the_reference_gets_full_marks(grader, tmp_path):
    outcomes = grader.grade(submission(tmp_path / "student"))
    assert grade.points(outcomes) == FULL and sum(FULL.values()) == 100


def test_the_empty_version_gets_none(grader, tmp_path):
    empty = {name: make.without_solutions(REFERENCE[name]) for name in make.MODULES}
    outcomes = grader.grade(submission(tmp_path / "student", REFERENCE | empty))
    assert set(grade.points(outcomes).values()) == {0}
    assert grade.report(outcomes).count("not written yet") == len(grade.PARTS)


# One of each part, and the one that answers otherwise each time: of these the diagnosis has another process's answers.
ASKED_AGAIN = [next(m for m in MISTAKES if m.part == part) for part in grade.PARTS]
ASKED_AGAIN += [m for m in MISTAKES if "random.choices(" in m.wrong]


CASES = [pytest.param(m, marks=[] if m in ASKED_AGAIN else [pytest.mark.mistakes]) for m in MISTAKES]


@pytest.mark.parametrize("mistake", CASES, ids=lambda m: f"{m.part}: {m.hint[:50] or m.right.strip()[:50]}")
def test_a_known_mistake_costs_its_part_alone_and_is_named(mistake, grader, grader_that_asks_once, tmp_path):
    grader = grader if mistake in ASKED_AGAIN else grader_that_asks_once
    asked = grader.cases
    if mistake.part == 8 and not mistake.hint:  # only a run shows it: what is asked before the runs takes a second
        asked = [case for case in asked if case["call"] == "train"]
    if mistake.part == 5:  # is part 6 as it was? The smaller ones of its cases tell that, too, in a tenth of the time
        asked = [case for case in asked if case["part"] != 6 or len(case["inputs"]["evolution"]["train_ids"]) < 100]
    grader = grade.Grader(grader.process, asked, grader.mistaken, grader.below)
    files = plant(REFERENCE, mistake)
    found = lost(grader, mistake.part, mistake.file, files[mistake.file])
    assert list(found) == [mistake.part]
    assert found[mistake.part]["message"] and found[mistake.part]["hint"]
    if mistake.hint and mistake.part == 8:  # the checks behind the first one are runs, which take long
        assert found[8]["hint"] == mistake.hint
    elif mistake.hint:
        checks = grader.grade(submission(tmp_path / "student", files), (mistake.part,))[mistake.part]
        assert {check["hint"] for check in checks if "expected" in check["message"]} == {mistake.hint}


def test_a_known_mistake_that_another_check_rules_out_is_not_named(grader, tmp_path):
    # It answers as "cfg.leave_one_bare is ignored" does where both options are on, and rightly where only that one is.
    files = changed(
        "gepa_loop.py", "if cfg.leave_one_bare:", "if cfg.leave_one_bare and not cfg.one_template_per_group:"
    )
    outcomes = grader.grade(submission(tmp_path / "student", files), (6,))[6]
    assert {check["name"]: check["hint"] for check in outcomes if not check["passed"]} == {
        "both options": "One draw, and the last of the G is empty."
    }


def test_another_shape_is_named(grader, tmp_path):
    files = changed("grpo.py", "    return centred.view(-1)\n", "    return centred\n")
    checks = grader.grade(submission(tmp_path / "one", files), (1,))[1]
    assert checks[0]["hint"] == grade.SHAPES["group_advantages"]
    assert checks[1]["hint"] == 'Mend "scaled" first, which is the simpler check.'
    files = changed("gepa_loop.py", "*evolution.train_ids]:", "]:")  # no other shape, but a pool that is missing
    checks = grader.grade(submission(tmp_path / "two", files), (6,))[6]
    assert checks[0]["hint"] == grade.FIGURES_OF["assign_templates"]["pools"]


@pytest.mark.parametrize("bounds", ["-0.3, 0.4", "max=0.4", "min=0.0"])
def test_advantages_that_are_cut_off_are_named(bounds, grader, tmp_path):
    files = changed("grpo.py", "    return centred.view(-1)\n", f"    return centred.view(-1).clamp({bounds})\n")
    checks = grader.grade(submission(tmp_path / "student", files), (1,))[1]
    hints = [check["hint"] for check in checks if not check["passed"]]
    assert hints[0] == grade.IN_COMMON["group_advantages"][1]


@pytest.mark.parametrize("left_out", ["[:, -1]", "[:, 0]"])
def test_a_token_that_is_left_at_0_is_named(left_out, grader, tmp_path):
    kept = "logprobs = logprobs.index_put((rows, columns), torch.cat(values))\n"
    zeroed = f"    {kept}    gone = torch.ones_like(logprobs)\n    gone{left_out} = 0\n    return logprobs * gone\n"
    right = "    return logprobs.index_put((rows, columns), torch.cat(values))  # [B, T]\n"
    checks = grader.grade(submission(tmp_path / "student", changed("grpo.py", right, zeroed)), (4,))[4]
    hints = [check["hint"] for check in checks if not check["passed"]]
    assert hints[0] == grade.IN_COMMON["token_logprobs"][1]
    assert set(hints[1:]) == {'Mend "one response" first, which is the simpler check.'}


@pytest.mark.parametrize(
    ("right", "otherwise"),
    [
        (  # by name, as the annotation UpdateSize invites
            "    rollouts, tokens, max_length = update_size or (",
            "    size = update_size\n    if size:\n"
            "        update_size = size.rollouts, size.tokens, size.max_response_tokens\n"
            "    rollouts, tokens, max_length = update_size or (",
        ),
        (  # at a tie, clamp passes all of the gradient on, and min a half
            "bounded = torch.min(-advantages * dual_clip, pessimistic)",
            "bounded = pessimistic.clamp(max=-advantages * dual_clip)",
        ),
        (  # behind a response nothing counts
            "return (logprobs - old_logprobs).clamp(-20, 20)",
            "return ((logprobs - old_logprobs) * mask).clamp(-20, 20)",
        ),
        (  # the same for every c above 1 + clip_high
            "unclipped = -advantages * rho\n    clipped = -advantages * rho.clamp(1 - clip_low, 1 + clip_high)\n",
            "unclipped = -advantages * rho.clamp(max=dual_clip).where(advantages < 0, rho)\n"
            "    clipped = -advantages * rho.clamp(1 - clip_low, 1 + clip_high)\n",
        ),
    ],
    ids=["update_size by name", "clamp", "masked ratio", "dual clip first"],
)
def test_right_code_that_is_written_otherwise_has_all_points(right, otherwise, grader, tmp_path):
    outcomes = grader.grade(submission(tmp_path / "student", changed("grpo.py", right, otherwise)), (2,))
    assert grade.points(outcomes) == {2: FULL[2]}, grade.report(outcomes)


def test_a_forgotten_check_of_the_sizes_costs_half(grader, tmp_path):
    files = changed("grpo.py", "if group_size < 2 or rewards.numel() % group_size:", "if False:")
    outcomes = grader.grade(submission(tmp_path / "student", files), (1,))
    assert grade.points(outcomes) == {1: 5}


def test_a_result_of_another_type_is_named(grader, tmp_path):
    files = changed("grpo.py", "    return centred.view(-1)\n", "    return centred.view(-1).tolist()\n")
    files["grpo.py"] = files["grpo.py"].replace(
        "(bounded == template_ratio).to(template_ratio.dtype)", "bounded == template_ratio"
    )
    files["grpo.py"] = files["grpo.py"].replace(
        'value, mask, "token-mean", update_size).item()', 'value, mask, "token-mean", update_size)'
    )
    files["gepa_loop.py"] = changed(
        "gepa_loop.py", "[evolution.candidates[chosen[i]] for i in picks]", "evolution.candidates[chosen[picks[0]]]"
    )["gepa_loop.py"]
    files["gepa_loop.py"] = files["gepa_loop.py"].replace("chosen.append(best)", "chosen.append(float(best))")
    files["verify.py"] = changed("verify.py", "correct = same and bool(found)", "correct = int(same) and bool(found)")[
        "verify.py"
    ]
    outcomes = grader.grade(submission(tmp_path / "student", files), (1, 2, 3, 5, 6, 7))
    hints = {part: next(c["hint"] for c in checks if not c["passed"]) for part, checks in outcomes.items()}
    assert hints[1].startswith("It gives a list where a tensor is wanted. The check asks: The mean and")
    assert hints[5].startswith("Indices of type float: a run writes them down as JSON, so make ints of them.")
    assert hints[6].startswith("A question gets a str where a list of G templates is wanted.")
    assert [hints[2], hints[3], hints[7]] == [
        grade.SHAPES[c] for c in ("policy_loss", "template_ratio_weight", "grade_batch")
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("SyntaxError: '(' was never closed (grpo.py, line 172)", "Python cannot read a file."),
        ("TabError", "Python cannot read a file."),
        ("AttributeError: module 'gepa_loop' has no attribute 'greedy_cover'", "Did you rename it?"),
    ],
)
def test_what_no_check_has_to_do_with_is_said_instead_of_the_checks_hint(error, said):
    case = {"part": 5, "name": "one", "call": "greedy_cover", "hint": "First one on ties."}
    hint = grade.Grader(None, [], None, None).outcome(case, {"error": error})["hint"]
    assert said in hint and case["hint"] not in hint


def test_what_an_advantage_may_ask_for_is_handed_on_and_templates_stay_the_callers(grader, tmp_path):
    asked = [case for case in grader.cases if case["name"] == "rollouts, another advantage"]
    grader = grade.Grader(grader.process, asked, grader.mistaken, grader.below)
    files = changed("p2o.py", "batch=rollouts, policy=policy, ", "batch=rollouts, ")
    (outcome,) = grader.grade(submission(tmp_path / "student", files), (8,))[8]
    assert not outcome["passed"] and "policy=" in outcome["hint"]
    files = changed("p2o.py", "templates.get(", "templates.pop(")
    (outcome,) = grader.grade(submission(tmp_path / "another", files), (8,))[8]
    assert outcome["hint"].startswith("an input was changed in place")


def test_a_report_says_nothing_twice():
    failed = {
        "call": "greedy_cover",
        "passed": False,
        "hint": "",
        "traceback": "  File x\nIndexError: 1",
        "message": "E",
    }
    checks = [failed | {"name": "one"}, failed | {"name": "two", "traceback": "  File x\nIndexError: 2"}]
    checks += [failed | {"name": name, "message": grade.NOT_ASKED, "traceback": ""} for name in ("three", "four")]
    copy = '  File "/tmp/grading-ab_1/tmpcd/gepa_loop.py", line 3, in greedy_cover\nKeyError: 1'
    checks.append(failed | {"name": "five", "traceback": copy})
    said = grade.report({5: checks}, tracebacks=True)
    assert '  File "gepa_loop.py", line 3, in greedy_cover' in said and "/tmp" not in said
    assert said.count("File x") == 1 and "one: E" in said and "two: E" in said
    assert said.count(grade.NOT_ASKED) == 1 and "2 more checks" in said


def test_what_stands_on_a_mistake_says_so(grader, tmp_path):
    files = changed("grpo.py", "return sums.sum() / max_length", "return sums.sum() / max_length / rollouts")
    hints = {
        o["call"]: o["hint"] for o in grader.grade(submission(tmp_path / "student", files), (2,))[2] if not o["passed"]
    }
    assert set(hints) == {"aggregate", "policy_loss"}
    assert hints["policy_loss"] == "policy_loss stands on aggregate: mend that first."


def test_a_loop_without_end_and_a_dead_process_cost_their_part(grader, tmp_path):
    files = changed("gepa_loop.py", "if not any(gains):", "if False:")
    files |= {"verify.py": REFERENCE["verify.py"] + "\n\ndef grade_batch(*_):\n    __import__('os')._exit(3)\n"}
    folder = submission(tmp_path / "student", files)
    outcomes = {5: grader.outcomes(folder, 5, limit=1)} | grader.grade(folder, (7, 6))
    assert grade.points(outcomes) == {5: 0, 7: 0, 6: 10}
    assert "it took longer than " in grade.report(outcomes) and "ended with code 3" in grade.report(outcomes)
    assert {check["hint"] for check in outcomes[5] if check["message"] == grade.NOT_ASKED} == {""}


def test_memory_has_a_limit(grader, tmp_path):
    greedy = REFERENCE["gepa_loop.py"] + "\n\ndef greedy_cover(_):\n    return len(bytearray(64 << 30))\n"
    outcomes = grader.grade(submission(tmp_path / "student", REFERENCE | {"gepa_loop.py": greedy}), (5,))
    assert grade.points(outcomes) == {5: 0} and "MemoryError" in outcomes[5][0]["message"]


def test_messages_show_where_and_both_numbers(grader, tmp_path):
    files = changed("grpo.py", "groups.std(dim=1, keepdim=True)", "groups.std(dim=1, keepdim=True, correction=0)")
    report = grade.report(grader.grade(submission(tmp_path / "student", files), (1,)))
    assert "group_advantages, scaled: [0]: expected " in report and ", got " in report
    assert "hint: That is the population's standard deviation" in report


def test_inputs_are_drawn_afresh():
    one, other = cases.draw(1), cases.draw(2)
    assert [case["name"] for case in one] == [case["name"] for case in other]
    calls = {"greedy_cover", "grade_batch", "policy_loss", "token_logprobs", "train", "mine_hard", "sample_groups"}
    same = {a["call"] for a, b in zip(one, other, strict=True) if a["inputs"] == b["inputs"]}
    assert not same & (calls - {"greedy_cover"})


# ---------------------------------------------------------------------------------------------------- cheats earn none

SPY = """
import gc, os, sys, types
from pathlib import Path
gc.unfreeze()
found = [name for name, module in sys.modules.items() if name in ("make", "cases", "mistakes", "grade", "pytest")]
found += [o for o in gc.get_objects() if isinstance(o, types.FunctionType) and o.__name__ == "group_advantages"
          and o.__module__ not in ("calls", "adapters")]
def reach(path):
    try:
        return Path(path).read_text()
    except OSError:
        return ""
"""


def answers(grader, tmp_path, adapters, part):
    """What the grader makes of the empty version with these adapters."""
    empty = {name: make.without_solutions(REFERENCE[name]) for name in make.MODULES}
    return grader.grade(submission(tmp_path / "student", REFERENCE | empty | {"adapters.py": adapters}), (part,))[part]


def test_the_reference_is_not_in_the_process_of_a_submission(grader, tmp_path):
    spying = SPY + "def group_advantages(**_):\n    raise RuntimeError(f'seen: {found}')\n"
    outcomes = answers(grader, tmp_path, spying, 1)
    assert {outcome["message"] for outcome in outcomes} == {"RuntimeError: seen: []"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Landlock is Linux's")
def test_the_reference_is_not_within_reach_on_the_disk_either(grader, tmp_path):
    paths = [
        str(ROOT / "grpo.py"),
        str(ROOT / "assignment" / "cases.py"),
        "/proc/1/environ",
        f"/proc/{os.getpid()}/maps",
    ]
    spying = SPY + f"def greedy_cover(_):\n    raise RuntimeError([len(reach(path)) for path in {paths}])\n"
    outcomes = answers(grader, tmp_path, spying, 5)
    if not grader.process.locked:
        pytest.skip("this kernel has no Landlock")
    assert {outcome["message"] for outcome in outcomes} == {"RuntimeError: [0, 0, 0, 0]"}


def test_patching_what_collects_the_answers_earns_nothing(grader, tmp_path):
    patching = """
import calls
import json, sys
runner = sys.modules["__main__"]
runner.answer = lambda request: json.dumps({"passed": True, "message": "", "output": None})
json.dumps = lambda *_, **__: '{"passed": true, "output": true, "points": 10}'
for name in calls.CALLS:
    calls.CALLS[name] = lambda *_, **__: {"passed": True}
"""
    outcomes = answers(grader, tmp_path, patching, 5)
    assert not any(outcome["passed"] for outcome in outcomes)


def test_recorded_outputs_cannot_be_given_back(grader, folder, tmp_path):
    """Answers to the open questions are known to every student; the secret ones are others."""
    known = [case for case in json.loads((folder / "grader" / "cases.json").read_text()) if case["part"] == 5]
    recorded = {json.dumps(case["inputs"]): case["expected"] for case in known}
    replaying = f"import json\nKNOWN = {recorded!r}\n"
    replaying += "def greedy_cover(dev_scores):\n    return KNOWN.get(json.dumps({'dev_scores': dev_scores}), [0])\n"
    outcomes = answers(grader, tmp_path, replaying, 5)
    assert grade.points({5: outcomes}) == {5: 0}
    assert sum(outcome["passed"] for outcome in outcomes) < len(outcomes) / 2


LEAK = """
import inspect, sys
from pathlib import Path
import grpo
found = []
for read in (lambda: inspect.getsource(grpo), lambda: Path(grpo.__file__).read_text()):
    try:
        found.append(read())
    except OSError:
        found.append("")
class policy_loss(Exception):
    pass
def mine_hard(*_):
    return ["SECRET", *found]
def sample_groups(*_):
    raise policy_loss(f"SECRET {[len(text) for text in found]} {grpo.policy_loss.__code__.co_names}")
def train(*_):
    raise NotImplementedError("SECRET") if any(found) else KeyError("SECRET")
"""


@pytest.fixture
def process_without_landlock(process, monkeypatch):
    monkeypatch.setenv("NO_LANDLOCK", "1")
    monkeypatch.setattr(process, "hidden", [])  # this checkout may be readable for all
    return process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="both locks are Linux's")
@pytest.mark.parametrize("by", ["kernel", "user"])
def test_part_8_can_neither_read_the_reference_nor_say_what_it_likes(by, grader, tmp_path, request):
    if by == "user":
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        process = request.getfixturevalue("process_without_landlock")
        grader = grade.Grader(process, grader.cases, lambda case: [], grader.below)
    outcomes = answers(grader, tmp_path, LEAK, 8)
    assert grader.process.locked == by
    assert "SECRET" not in json.dumps(outcomes) and "co_names" not in json.dumps(outcomes)
    lines = LEAK.splitlines()

    def line_of(function):  # the one line of its body
        return 2 + next(n for n, line in enumerate(lines) if line.startswith(f"def {function}("))

    messages = {outcome["call"]: outcome["message"] for outcome in outcomes}
    assert messages["mine_hard"].endswith("got another str")
    assert messages["sample_groups"] == f"an exception of its own at line {line_of('sample_groups')} of adapters.py"
    assert messages["train"] == f"KeyError at line {line_of('train')} of adapters.py"


def test_where_nothing_can_be_locked_up_nothing_is_graded(process_without_landlock):
    other = process_without_landlock
    other.hidden = [ROOT / "README.md"]  # anybody reads it
    with pytest.raises(NotLocked, match="--unlocked"):
        list(other.replies(other.folder(REFERENCE), [], 5))


def test_what_is_no_reply_is_no_answer(grader, tmp_path):
    forging = (
        "import os\nfor handle in range(3, 20):\n    try:\n        os.write(handle, b'[1]\\n{\"output\": []}\\n')\n"
    )
    forging += "    except OSError:\n        pass\n"
    outcomes = answers(grader, tmp_path, forging, 5)
    assert grade.points({5: outcomes}) == {5: 0}


# ----------------------------------------------------------------------------------- from the folder to the spreadsheet


def run(script, *arguments):
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, process):
    """A student's folder whose grader knows parts 1 and 5."""
    folder = tmp_path_factory.mktemp("made") / "student"
    make.make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("make.Process", lambda **_: nullcontext(process))  # another takes seconds to start
        make.write_cases(folder, parts=(1, 5))
    return folder


def test_nothing_of_the_solution_is_in_the_students_folder(folder):
    texts = [file.read_text("utf-8") for file in folder.rglob("*") if file.suffix in (".py", ".json", ".toml")]
    for name in make.MODULES:
        lines = REFERENCE[name].split("\n")
        for first, last, *_ in make.solutions(REFERENCE[name]):
            body = [line.strip() for line in lines[first + 1 : last] if len(line.strip()) > 50]
            kept = "\n".join(lines[:first] + lines[last:])
            assert not [line for line in body if line not in kept and any(line in text for text in texts)]
    names = {file.name for file in folder.rglob("*")}
    assert not names & {"IDEAS.md", "make.py", "cases.py", "mistakes.py", "INSTRUCTOR.md", "tests", "notebooks"}
    assert {"Makefile", "requirements.txt", "HANDOUT.md", "cases.json", "grade.yml"} <= names


def test_the_students_own_grader(folder):
    """Part 1 solved, graded and packed, with nothing of the repository; nobody's work is written over."""
    assert run(ROOT / "assignment" / "make.py", folder).returncode == 2
    source = (folder / "grpo.py").read_text()
    solved = "    groups = rewards.view(-1, group_size)\n    centred = groups - groups.mean(dim=1, keepdim=True)\n"
    solved += "    if scale_by_std:\n        centred = centred / (groups.std(dim=1, keepdim=True) + eps)\n"
    refused = '    if group_size < 2 or len(rewards) % group_size:\n        raise ValueError("groups")\n'
    hole = '    raise NotImplementedError("part 1: group_advantages")\n'
    (folder / "grpo.py").write_text(source.replace(hole, refused + solved + "    return centred.view(-1)\n"))
    result = run(folder / "grader" / "grade.py", folder)
    assert result.returncode == 1, result.stderr  # other parts are not written
    assert "part 1  group advantages        10 of 10" in result.stdout and "           10 of 100" in result.stdout
    suites = ElementTree.parse(folder / "grade.xml").getroot()
    assert [int(suite.get("failures")) > 0 for suite in suites][:5] == [False, False, False, False, True]
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert sorted(archive.namelist()) == sorted(grade.SUBMITTED)
    assert run(folder / "grader" / "grade.py", folder / "nowhere").returncode == 2


def test_a_folder_of_zips_is_graded_with_one_command(grader, tmp_path, monkeypatch):
    handed_in = tmp_path / "handed-in"
    handed_in.mkdir()
    wrong = plant(REFERENCE, MISTAKES[0])
    for name, files in {"ada": REFERENCE, "ben": wrong}.items():
        grade.pack(submission(tmp_path / name, files)).rename(handed_in / f"{name}.zip")
    (handed_in / "eve.zip").write_text("no zip")
    graded = grader.grade
    monkeypatch.setattr(grader, "grade", lambda folder: graded(folder, (1, 5)))
    grade.grade_all(grader, handed_in, tmp_path / "scratch")
    with (handed_in / "grades.csv").open() as file:
        rows = {row["submission"]: row for row in csv.DictReader(file)}
    assert rows["ada.zip"]["total"] == "20" and rows["ben.zip"]["total"] == "10"
    assert rows["eve.zip"]["total"] == "0" and "not a submission" in rows["eve.zip"]["note"]
    suites = ElementTree.parse(handed_in / "ben.xml").getroot()
    assert [suite.get("failures") != "0" for suite in suites] == [True, False]
    assert ElementTree.parse(handed_in / "eve.xml").getroot().find(".//error") is not None


def test_a_submission_may_stand_in_a_folder_of_its_zip(tmp_path):
    def zipped(name, entries):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for entry, text in entries.items():
                archive.writestr(entry, text)
        return tmp_path / name

    nested = {f"ada/p2o/{name}": source for name, source in REFERENCE.items()}
    found = grade.submission(zipped("one.zip", nested | {"__MACOSX/ada/p2o/._p2o.py": ""}), tmp_path / "one")
    assert {file.name: file.read_text() for file in found.iterdir()} == REFERENCE
    twice = nested | {f"old/{name}": source for name, source in REFERENCE.items()}
    with pytest.raises(OSError, match="several folders of it: ada/p2o, old"):
        grade.submission(zipped("two.zip", twice), tmp_path / "two")


def test_points_are_given_by_function(grader, tmp_path):
    files = changed("grpo.py", "torch.where(advantages < 0, bounded, pessimistic)", "pessimistic")
    outcomes = grader.grade(submission(tmp_path / "student", files), (2,))
    by = {name: (earned, worth) for name, (earned, worth, _) in grade.by_function(2, outcomes[2]).items()}
    assert by["aggregate"] == (4, 4) and by["log_importance_ratio"] == (1, 1)
    assert by["surrogate"][0] < 4 and by["policy_loss"][0] < 6
    grade.write_results(outcomes, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == grade.points(outcomes)[2] and results["stdout_visibility"] == "hidden"
    assert [test["max_score"] for test in results["tests"]] == [4, 1, 4, 6]
    assert "There is no dual clip" in results["tests"][2]["output"] and "expected" not in results["tests"][2]["output"]


def test_gradescope_runs_its_zip(tmp_path):
    """The zip as Gradescope unpacks it, but for the virtual environment that setup.sh installs. One part is enough."""
    assert (
        run(ROOT / "assignment" / "make.py", "--gradescope", tmp_path / "autograder.zip", "--seed", "5").returncode == 0
    )
    place = tmp_path / "autograder"
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        archive.extractall(place / "source")
    # What the Dockerfile names of the zip is there.
    named = re.findall(r"/autograder/source/(\S+)", (place / "source" / "Dockerfile").read_text())
    assert named and all((place / "source" / name).is_file() for name in named)
    (place / "results").mkdir()
    submission(place / "submission", {name: source for name, source in REFERENCE.items() if name != "p2o.py"})
    (place / "venv").symlink_to(sys.prefix)
    script = ["bash", str(place / "source" / "run_autograder")]
    subprocess.run(script, check=True, env=os.environ | {"AUTOGRADER": str(place)})
    results = json.loads((place / "results" / "results.json").read_text())
    assert results["score"] == 0 and "no p2o.py" in results["tests"][0]["output"]


def test_similarity_sees_through_new_names_and_not_what_was_given():
    mine = "def f(a, b):\n    c = [a[i] * b for i in range(3)]\n    return sum(c) / (len(c) + 7) - min(b, 4) ** 2\n"
    renamed = mine.replace("a", "x").replace("c", "total").replace("rxnge", "range").replace("xmin", "min")
    other = "def f(a, b):\n    while b > 0:\n        a, b = b, a % b\n    return a if a else not b\n"
    sources = {"one": make.shingles(mine), "two": make.shingles(renamed), "three": make.shingles(other)}
    found = make.pairs(sources, known=set())
    assert [(one, other) for _, one, other in found] == [("one", "two")]
    assert make.pairs(sources, known=make.shingles(mine)) == []


def test_the_students_own_adapters_are_used(grader, tmp_path):
    files = changed("grpo.py", "def group_advantages(", "def my_advantages(")
    assert grade.points(grader.grade(submission(tmp_path / "one", files), (1,))) == {1: 0}
    adapters = files["adapters.py"].replace("return grpo.group_advantages(", "return grpo.my_advantages(")
    files |= {"adapters.py": adapters}
    assert grade.points(grader.grade(submission(tmp_path / "two", files), (1,))) == {1: 10}


def test_the_final_score_counts_responses_and_refuses_other_options(tmp_path):
    epochs = [(0, 0, 0.0), (1000, 0, 0.2), (2000, 1000, 1.0)]
    lines = [
        {"kind": "epoch", "rollouts": rollouts, "gepa_calls": calls, "accuracy": {final.SCORED: accuracy}}
        for rollouts, calls, accuracy in epochs
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"group_size": 6}))
    expected = (1000 * 0.1 + 2000 * 0.6 + (final.BUDGET - 3000) * 1.0) / final.BUDGET
    assert final.score_of(tmp_path, {"group_size": 6}) == pytest.approx(expected)
    with pytest.raises(ValueError, match="group_size"):
        final.score_of(tmp_path, {"group_size": 3})


# ------------------------------------------------------------------------------------------------- the reference's side


def test_a_marker_in_a_wrong_place_is_refused():
    with pytest.raises(SyntaxError, match="marker"):
        make.without_solutions(
            'class C:\n    def f(x):\n        "Doubles."\n        # --- solution: part 3 ---\n        return 2 * x\n'
        )


def test_a_function_may_have_holes_in_what_is_given():
    marker = "# --- solution: part 3 ---"
    source = f'def f(x):\n    "Doubles."\n    if x:\n        {marker}\n        x *= 2\n        x += 0\n    y = x\n'
    source += f"    {marker}\n    y = y + 0\n\n    return y\n"
    assert make.without_solutions(source) == (
        'def f(x):\n    "Doubles."\n    if x:\n        raise NotImplementedError("part 3: f, hole 1 of 2")\n    y = x\n'
        '    raise NotImplementedError("part 3: f, hole 2 of 2")\n\n    return y\n'
    )


def test_the_handout_has_the_graders_points():
    handout = (ROOT / "assignment" / "HANDOUT.md").read_text()
    assert {
        int(part): int(worth) for part, worth in re.findall(r"^## Part (\d) .*?\((\d+) points", handout, re.M)
    } == FULL


def test_where_the_grader_cannot_run_it_says_so():
    """Windows has no `resource`, and no fork."""
    code = "import sys; sys.modules['resource'] = None; sys.path[:0] = [sys.argv[1]]; import grade"
    result = subprocess.run([sys.executable, "-c", code, str(ROOT / "assignment")], capture_output=True, text=True)
    assert result.returncode == 1 and "in WSL" in result.stderr and "Traceback" not in result.stderr


def test_every_part_has_a_marker_an_adapter_and_a_file():
    found = {part: name for file in make.MODULES for *_, part, name in make.solutions(REFERENCE[file])}
    assert set(found) == set(grade.PARTS) == {part for parts in FILES.values() for part in parts}
    assert all(f"def {name}(" in REFERENCE["adapters.py"] for name in found.values() if not name.startswith("_"))


def test_mutants_change_one_thing_and_stay_programs():
    source = "def f(x, *, y=1):\n    'Doc.'\n    if x < 2 and y:  # kept\n        x += 1\n    return max(x, -y)\n"
    found = [(m.before, m.after) for m in mutants(source)]
    assert found == [
        ("x < 2 and y", "not (x < 2 and y)"), ("x < 2 and y", "x < 2 or y"), ("x < 2", "x <= 2"), ("2", "3"),
        ("x += 1", "x = 1"), ("1", "2"), ("max", "min"), ("-y", "y"),
    ]  # fmt: skip
    graded = [mutant for *_, mutant in graded_mutants(set(grade.PARTS))]
    for mutant in graded:
        compile(mutant.source, mutant.function, "exec")
    reasons = {why_equivalent(mutant) for mutant in graded}
    assert {reason for *_, reason in EQUIVALENT} == reasons - {""}, "a reason for a mutant that is no more"
