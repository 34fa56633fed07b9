"""tiny/: what the problems and the shipped base model must be for the paper's phenomenon to be real in them."""

import json
import random

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import gepa_loop
import grpo
import verify
from tiny import problems
from tiny.problems import FAMILIES, HARD, USELESS_HINTS
from tiny.train_base import reflection_example, solve_example

# ---------------------------------------------------------------------------------------------------------- problems


@given(family=st.sampled_from(list(FAMILIES)), length=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_an_early_stop_is_never_right_and_every_state_is_one_token(family, length, seed):
    problem = problems.draw(random.Random(seed), family, (length,))
    assert len(problem.elements) == len(problem.states) == length
    assert problem.states[-1] not in problem.states[:-1]
    assert all(0 <= state <= 255 for state in problem.states)
    assert verify.grade(problem.response(), str(problem.states[-1])).reward == 1
    assert verify.grade(problem.response(depth=1), str(problem.states[-1])).reward == 0


@pytest.mark.parametrize(
    "family, elements, states",
    [
        ("total", ["7", "9", "8"], [7, 16, 24]),
        ("binary", ["1", "0", "1", "1"], [1, 2, 5, 11]),
        ("chain", ["7", "+5", "*2", "-3"], [7, 12, 24, 21]),
        ("clock", ["40", "25", "50"], [40, 5, 55]),
    ],
)
def test_each_family_folds_as_a_person_would(family, elements, states):
    rules, state = FAMILIES[family], int(elements[0])
    found = [state] + [state := rules.step(state, element) for element in elements[1:]]
    assert found == states


def test_the_shipped_files_are_what_the_script_writes_and_share_no_question():
    questions = []
    for name, drawn in problems.splits().items():
        lines = [json.loads(line) for line in (ROOT / "tiny" / f"{name}.jsonl").read_text().splitlines()]
        assert [line["question"] for line in lines] == [p.question for p in drawn]
        assert [line["answer"] for line in lines] == [str(p.states[-1]) for p in drawn]
        questions += [line["question"] for line in lines]
    assert len(set(questions)) == len(questions) == 384


# ---------------------------------------------------------------------------------------------------- the base model


def load(name, family=None):
    lines = [json.loads(line) for line in (ROOT / "tiny" / f"{name}.jsonl").read_text().splitlines()]
    return [line for line in lines if family in (None, line["family"])]


def solved(policy, lines, template="", seed=None, times=1):
    """Share of the problems that the base policy solves under a template (of each line's family if it is callable)."""
    pick = template if callable(template) else lambda line: template
    messages = [gepa_loop.apply_template(pick(line), line["question"]) for line in lines for _ in range(times)]
    samples = grpo.sample(policy, [grpo.chat_ids(policy, m) for m in messages], seed=seed)
    grades = verify.grade_batch([s.text for s in samples], [line["answer"] for line in lines for _ in range(times)])
    return sum(g.reward for g in grades) / len(grades)


def test_bare_hard_problems_fail(tiny_policy):
    assert solved(tiny_policy, load("hard")) <= 0.02
    assert solved(tiny_policy, load("ood")) <= 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", [0, 1])
def test_the_right_hint_solves_its_family(tiny_policy, family, which):
    assert solved(tiny_policy, load("hard", family), FAMILIES[family].hints[which]) >= 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_another_familys_hint_or_a_useless_one_does_not(tiny_policy, family):
    others = [f.hints[0] for name, f in FAMILIES.items() if name != family]
    for hint in [*others, *USELESS_HINTS]:
        assert solved(tiny_policy, load("hard", family), hint) <= 0.05


def test_all_hints_together_solve_every_family(tiny_policy):
    assert solved(tiny_policy, load("hard"), " ".join(f.hints[0] for f in FAMILIES.values())) >= 0.9


def test_easy_problems_are_easy(tiny_policy):
    easy = [line for line in load("train") if line["question"].count(",") == 1]
    assert len(easy) == 40
    assert solved(tiny_policy, easy) >= 0.9


def test_longer_problems_are_within_reach_of_the_right_hint(tiny_policy):
    assert solved(tiny_policy, load("ood"), lambda line: FAMILIES[line["family"]].hints[0]) >= 0.85


def test_sampled_under_the_right_hint_some_succeed_and_some_fail(tiny_policy):
    share = solved(tiny_policy, load("hard"), lambda line: FAMILIES[line["family"]].hints[0], seed=0, times=6)
    assert 0.4 <= share <= 0.8


def test_no_token_is_so_rare_that_the_ratio_mask_would_cut_the_lesson(tiny_policy):
    lines = load("hard")[:40]
    bare = [grpo.chat_ids(tiny_policy, line["question"]) for line in lines]
    hinted = [
        grpo.chat_ids(tiny_policy, gepa_loop.apply_template(FAMILIES[line["family"]].hints[0], line["question"]))
        for line in lines
    ]
    samples = grpo.sample(tiny_policy, hinted, seed=None)
    responses = [s.response_ids for s in samples]
    rows = zip(
        grpo.logprobs_of(tiny_policy, bare, responses), grpo.logprobs_of(tiny_policy, hinted, responses), strict=True
    )
    gaps = [b - h for bare_row, hinted_row in rows for b, h in zip(bare_row, hinted_row, strict=True)]
    assert sum(gap < -4.6 for gap in gaps) / len(gaps) < 0.01  # log 0.01


def test_the_base_model_reflects(tiny_policy):
    """It writes whole fenced instructions, and often enough one that holds a hint for a failed family."""
    lines = [load("hard", family)[0] for family in ("total", "clock", "chain")]
    records = [
        gepa_loop.reflection_record(
            line["question"],
            f"{line['question'].split()[-1]} \\boxed{{1}}",
            f"The answer 1 is wrong. The right answer is {line['answer']}.",
        )
        for line in lines
    ]
    context = grpo.chat_ids(tiny_policy, gepa_loop.reflection_prompt("Stay calm.", records))
    replies = grpo.sample(tiny_policy, [context] * 100, seed=0, max_new_tokens=60)
    templates = [gepa_loop.parse_reflection(s.text) for s in replies]
    useful = {hint for family in ("total", "clock", "chain") for hint in FAMILIES[family].hints}
    assert sum(t is not None for t in templates) >= 85
    share = sum(any(hint in (t or "") for hint in useful) for t in templates) / 100
    assert 0.2 <= share <= 0.8


def test_every_text_it_is_shown_is_in_its_vocabulary(tiny_policy):
    tokenizer, rng = tiny_policy.tokenizer, random.Random(0)
    go_on = {"bare": 0.07, "hinted": 0.9, "wrong": 0.07}
    texts = [solve_example(rng, go_on)[0] for _ in range(200)]
    texts += [part for _ in range(50) for part in reflection_example(rng)]
    texts += [
        verify.feedback(verify.grade(r, "7"), "7") for r in ("", "\\boxed{7}", "\\boxed{8}", "\\boxed{7} \\boxed{7}")
    ]
    texts += [verify.feedback(verify.grade("", "7"), "7", truncated=True)]
    for text in texts:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text


def test_decoding_gives_back_the_text(tiny_policy):
    rng = random.Random(1)
    for _ in range(50):
        problem = problems.draw(rng, rng.choice(list(FAMILIES)), HARD)
        for text in (problem.question, problem.response(), " ".join(FAMILIES[problem.family].hints)):
            assert tiny_policy.tokenizer.decode(tiny_policy.tokenizer(text).input_ids) == text
