"""Ideas in ten lines: each a function for a seam, or a diff that applies to the modules as they are; all are small."""

import inspect
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import grpo
from support.seams import find

IDEAS = ROOT / "notebooks" / "ideas"
sys.path.insert(0, str(IDEAS))

import measure  # noqa: E402

PAGE = (ROOT / "notebooks" / "IDEAS.md").read_text(encoding="utf-8")
DIFFS = [options for options in measure.IDEAS.values() if isinstance(options, str)]
FUNCTIONS = [options for options in measure.IDEAS.values() if options and not isinstance(options, str)]


def rollouts(rewards, lengths=None):
    """A group with these rewards and lengths; nothing else of it matters here."""
    lengths = lengths or [3] * len(rewards)
    contexts = {"sampled_context": [1], "trained_context": [1]}
    return [
        grpo.Rollout(
            response_ids=[0] * n,
            sampled_logprobs=[0.0] * n,
            truncated=False,
            text="",
            question_id="q",
            reward=r,
            **contexts,
        )
        for r, n in zip(rewards, lengths, strict=True)
    ]


def test_there_are_five_and_the_page_shows_each_as_it_is():
    assert len(DIFFS) + len(FUNCTIONS) == 5
    for diff in DIFFS:
        lines = (IDEAS / diff).read_text().splitlines()
        changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        assert diff in PAGE and all(line in PAGE for line in changed), f"{diff}: the page shows another diff"
    for options in FUNCTIONS:
        assert " ".join(options) in PAGE
        assert (ROOT / options[1].partition(":")[0]).read_text().strip() in PAGE, (
            f"{options[1]}: the page shows another"
        )


def test_the_page_shows_the_measured_table():
    assert (IDEAS / "results.md").read_text(encoding="utf-8").strip() in PAGE


@pytest.mark.parametrize("diff", DIFFS)
def test_a_diff_applies_compiles_and_changes_at_most_two_lines(diff, tmp_path):
    lines = (IDEAS / diff).read_text().splitlines()
    assert sum(line.startswith("+") and not line.startswith("+++") for line in lines) == 1
    name = lines[1].removeprefix("+++ b/")
    shutil.copy(ROOT / name, tmp_path / name)
    result = subprocess.run(["git", "apply", str(IDEAS / diff)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / name).read_text() != (ROOT / name).read_text()
    compile((tmp_path / name).read_text(), name, "exec")


@pytest.mark.parametrize("options", FUNCTIONS, ids=lambda options: options[0][2:])
def test_a_function_is_found_by_its_option_and_is_at_most_ten_lines(options):
    function = find(options[0][2:], str(ROOT / options[1]))
    assert len(inspect.getsource(function).splitlines()) <= 10


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_one():
    mine = find("advantage", str(IDEAS / "1_advantage.py:leave_one_out"), None)(rollouts([1.0, 0, 0, 0, 0, 0]))
    reference = grpo.group_advantages(torch.tensor([1.0, 0, 0, 0, 0, 0]), 6, scale_by_std=False) * 6 / 5
    assert mine == pytest.approx(reference.tolist())


def test_one_ratio_for_a_response_does_not_weigh_responses_by_length():
    """With seq-mean-token-mean, GSPO's mean over responses: a response of one token counts as much as one of four."""
    whole_response = find("ratio", str(IDEAS / "2_ratio.py:whole_response"), None)
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    new = torch.tensor([[0.1, -0.1, 0.3, 0.1], [0.05, 0, 0, 0]]) * mask
    loss, _ = grpo.policy_loss(
        new, torch.zeros(2, 4), torch.tensor([1.0, 1.0]), mask, ratio=whole_response, aggregation="seq-mean-token-mean"
    )
    assert loss.item() == pytest.approx(-(torch.tensor(0.1).exp() + torch.tensor(0.05).exp()).item() / 2)


def test_a_price_on_length_gives_failures_of_unequal_length_an_advantage():
    price = find("advantage", str(IDEAS / "5_reward.py:price_on_length"), None)
    assert price(rollouts([0.0, 0.0], [3, 3])) == [0.0, 0.0]
    assert price(rollouts([0.0, 0.0], [3, 4]))[0] > 0.5
