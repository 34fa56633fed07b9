"""gepa_loop.py: cover, budget and split against the design's numbers; the real GEPA on small honest worlds.

Teacher reflection runs against a real OpenAI-compatible server on loopback: `transformers serve` with the tiny model.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

import gepa_loop
import verify
from gepa_loop import EvolutionConfig
from support import checkpoint, gepa_glue
from support.data import Question
from support.errors import UserError
from support.messages import as_messages
from support.reflection import teacher

CASES = json.loads((Path(__file__).parent / "data" / "reference.json").read_text())


@pytest.mark.parametrize("case", CASES["cover"])
def test_greedy_cover_reproduces_the_reference(case):
    assert gepa_loop.greedy_cover(case["dev_scores"]) == case["selected"]


@pytest.mark.parametrize("case", CASES["budget"])
def test_metric_call_budget_reproduces_the_reference(case):
    assert gepa_loop.metric_call_budget(case["auto"], case["dev_size"]) == case["max_metric_calls"]


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_cover_solves_all_that_is_solved_and_nobody_is_idle(dev_scores):
    chosen = gepa_loop.greedy_cover(dev_scores)
    solved = [{n for n in range(5) if scores[n]} for scores in dev_scores]
    assert set().union(*(solved[k] for k in chosen)) == set().union(*solved)
    for i, k in enumerate(chosen):
        assert solved[k] - set().union(*(solved[j] for j in chosen[:i]))


@pytest.mark.parametrize(
    "hard, dev_size, expected", [(12, 40, 6), (59, 40, 29), (60, 40, 40), (400, 300, 200), (450, 300, 300)]
)
def test_dev_set_is_half_of_a_small_hard_set_and_dev_size_of_a_large_one(hard, dev_size, expected):
    problems = [Question(str(i), "", "") for i in range(hard)]
    train, dev = gepa_loop.split_hard_set(problems, dev_size, random.Random(0))
    assert len(dev) == expected
    assert sorted(p.id for p in train + dev) == sorted(p.id for p in problems)


def test_apply_template_leaves_a_bare_question_as_it_is():
    assert gepa_loop.apply_template("", "x") == "x"
    assert gepa_loop.apply_template("z", "x") == "z\n\nx"


# ------------------------------------------------------------------------------------------------------- assignment


def evolution(dev_scores, candidates=None, train_ids=("t",)):
    return gepa_loop.Evolution(
        candidates=candidates or [f"z{k}" for k in range(len(dev_scores))],
        parents=[[None]] * len(dev_scores),
        dev_scores=dev_scores,
        dev_ids=[f"d{n}" for n in range(len(dev_scores[0]))],
        train_ids=list(train_ids),
        chosen=gepa_loop.greedy_cover(dev_scores),
        metric_calls=0,
        rejected_replies=0,
        stopped_early=None,
    )


def test_dev_questions_draw_from_what_solves_them_and_train_questions_from_the_whole_cover():
    found = evolution([[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    assert found.chosen == [1, 2] and found.weights == [0.75, 0.5]
    templates = gepa_loop.assign_templates(found, 200, random.Random(0))
    assert set(templates["d0"]) == {"z1"} and set(templates["d3"]) == {"z2"}
    assert set(templates["d2"]) == set(templates["t"]) == {"z1", "z2"}
    assert Counter(templates["t"])["z1"] == pytest.approx(200 * 0.75 / 1.25, abs=25)  # weighted by mean dev score


def test_a_dev_question_that_nothing_solves_draws_from_the_whole_cover():
    found = evolution([[1, 0, 0], [0, 1, 0]])
    assert set(gepa_loop.assign_templates(found, 50, random.Random(0))["d2"]) == {"z0", "z1"}


def test_templates_are_drawn_per_rollout_or_once_per_group():
    found = evolution([[1, 0], [0, 1]], train_ids=[f"t{i}" for i in range(20)])
    per_rollout = gepa_loop.assign_templates(found, 6, random.Random(0))
    per_group = gepa_loop.assign_templates(found, 6, random.Random(0), EvolutionConfig(one_template_per_group=True))
    one_bare = gepa_loop.assign_templates(found, 6, random.Random(0), EvolutionConfig(leave_one_bare=True))
    assert one_bare == {name: [*zs[:-1], ""] for name, zs in per_rollout.items()}
    assert any(len(set(zs)) > 1 for zs in per_rollout.values())
    assert all(len(zs) == 6 and len(set(zs)) == 1 for zs in per_group.values())


def test_nothing_solved_means_the_next_epoch_runs_bare():
    assert gepa_loop.assign_templates(evolution([[0, 0], [0, 0]]), 6, random.Random(0)) == {}


# ------------------------------------------------------------------------------------------------------- reflection


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("```\nDo it.\n```", "Do it."),
        ("Here:\n```text\nDo it.\nTwice.\n```\nGood luck", "Do it.\nTwice."),
        ("```\nDo it.```", "Do it."),
        ("```\r\nDo it.\r\n```", "Do it."),
        ("```text\r\nDo it.\r\n```", "Do it."),
        ("```\n...\n```", None),
        ("Old:\n```\nOld text.\n```\nNew:\n```\nDo it and", None),  # it is not complete
        ("```\n\n```", None),
        ("``````", None),
        ("````\nUse:\n```\n1 + 1\n```\n````", "Use:\n```\n1 + 1\n```"),
        ("````\nDo it.\n```", None),
    ],
)
def test_of_a_reply_with_fences_the_last_complete_block_is_adopted(reply, expected):
    assert gepa_loop.parse_reflection(reply) == expected


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("<think>```no```</think>```\nDo it.\n```", "Do it."),
        ("no, ```\nnot this\n```\n</think>\n```\nDo it.\n```", "Do it."),  # the chat template opened the tag
        ("<think>one</think><think>two</think>Do it.", "Do it."),
        ("```\nDo it.\n```\n<think>or rather", None),
        ("<think>maybe", None),
        ("<thinking>no</thinking>\n\nDo it.", "Do it."),
        ("[THINK]```no```[/THINK]```\nThink in <thinking> tags.\n```", "Think in <thinking> tags."),
        ("<thinking>maybe", None),
    ],
)
def test_what_a_model_thought_is_no_instruction(reply, expected):
    assert gepa_loop.parse_reflection(reply) == expected


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("Do it.", "Do it."),
        ('"Do it."', "Do it."),
        ('Here is a better instruction:\n\n"Do it."', "Do it."),
        ("Here's the revised instruction: Do it.\n\nThis instruction is clearer, since it names the step.", "Do it."),
        ("Sure! Here is the new instruction:\n\nDo it.\n\nDo it twice.", "Do it.\n\nDo it twice."),
        ("**New instruction:**\nDo it.\n\nExplanation: it was not done.", "Do it."),
        ("Instruction: Do it.", "Do it."),
        ("Here is the new instruction:", None),
        ("Do it.\n\n---\n\nThis prompt is clearer.", "Do it."),
        ("### Improved Instruction\n\nDo it.", "Do it."),
        ("The sums were wrong. A better instruction would be:\n\nDo it.", "Do it."),
        ("Follow the instruction: add.", "Follow the instruction: add."),
        ('""', None),
        (" \n", None),
        ("", None),
    ],
)
def test_of_a_reply_without_fences_the_first_paragraphs_are_adopted(reply, expected):
    """Small models hardly ever write fences."""
    assert gepa_loop.parse_reflection(reply) == expected


def test_the_reflection_prompt_shows_instruction_examples_and_feedback():
    record = gepa_loop.reflection_record("1 + 1?", "\\boxed{3}", "The answer 3 is wrong. The right answer is 2.")
    prompt = gepa_loop.reflection_prompt("Be brief.", [record])
    for part in ("Be brief.", "1 + 1?", "\\boxed{3}", "The right answer is 2."):
        assert part in prompt


def test_words_that_look_like_places_of_the_prompt_stay_as_they_are():
    record = gepa_loop.reflection_record("<curr_param>", "<side_info>", "wrong")
    prompt = gepa_loop.reflection_prompt("Use <side_info>.", [record], "Old: <curr_param>\nSeen:\n<side_info>\nNew?")
    assert prompt.startswith("Old: Use <side_info>.\nSeen:\n# Example 1\n## Question\n<curr_param>\n")
    assert prompt.count("# Example 1") == 1 and prompt.endswith("New?")


def test_a_reflection_prompt_of_ones_own_is_what_the_model_gets(tmp_path):
    (tmp_path / "words.txt").write_text("\ufeffFeedback:\n<side_info>\nNow?\n", encoding="utf-8")  # an editor's mark
    asked = []
    evolve(lambda p: asked.append(p) or "```\nno\n```", gepa_budget="20", reflection_prompt=str(tmp_path / "words.txt"))
    assert asked and all(p.startswith("Feedback:\n# Example 1") and p.endswith("Now?") for p in asked)


# ---------------------------------------------------------------------------------- the real gepa package, end to end


def hard_questions(count=24):
    return [Question(f"q{i}", f"{'red' if i % 2 else 'blue'} {i}", str(i)) for i in range(count)]


def respond(messages):
    """A world of two skills: a red question is solved under an instruction with RED in it, a blue one with BLUE."""
    replies = []
    for message in messages:
        template, _, question = message.rpartition("\n\n")
        colour, number = question.split()
        replies.append((f"\\boxed{{{number}}}" if colour.upper() in template else "\\boxed{-1}", False))
    return replies


def one_by_one(reflect):
    """A reflection model that is asked prompt by prompt."""
    return lambda prompts: [reflect(prompt) for prompt in prompts]


OPTIONS = ("gepa_", "reflection_")  # how the names of the search's own options begin


def evolve(reflect, respond=respond, seed=0, **settings):
    cfg = {"gepa_dev_size": 8, "gepa_parents": 1} | {k: v for k, v in settings.items() if k.startswith(OPTIONS)}
    how = {k: v for k, v in settings.items() if not k.startswith(OPTIONS)}
    return gepa_loop.evolve(hard_questions(), respond, one_by_one(reflect), EvolutionConfig(**cfg), seed=seed, **how)


def test_evolution_finds_and_combines_what_the_feedback_shows():
    def reflect(prompt):
        current = prompt.split("```")[1].strip()
        missing = [c for c in ("RED", "BLUE") if c.lower() in prompt and c not in current]
        return f"```\n{current} {missing[0]}\n```" if missing else "```\nnothing\n```"

    found = evolve(reflect, gepa_budget="200", gepa_parents=2)
    assert found.candidates[0] == "" and sum(found.dev_scores[0]) == 0
    assert len(found.chosen) == 1 and max(map(sum, found.dev_scores)) == 8
    assert {"RED", "BLUE"} <= set(found.candidates[found.chosen[0]].split())
    assert sorted(found.dev_ids + found.train_ids) == sorted(p.id for p in hard_questions())
    assert found.metric_calls < 200 and found.stopped_early is None  # ends once the whole dev set is solved


def test_templates_are_chosen_where_the_bare_prompt_earns_partial_credit_everywhere():
    """Any score above 0 counts for the cover: the bare prompt would cover all, and the next epoch would run bare."""

    def judge(responses, questions, truncated):
        verdicts = verify.judge(responses, questions, truncated)
        return [verdict._replace(reward=max(verdict.reward, 0.2)) for verdict in verdicts]

    skills = itertools.cycle(["```\nRED\n```", "```\nBLUE\n```"])
    found = evolve(lambda prompt: next(skills), gepa_budget="120", judge=judge)
    assert found.dev_scores[0] == [0.2] * 8 and 0 not in found.chosen
    assert {"RED", "BLUE"} <= {found.candidates[k] for k in found.chosen}


def test_evolution_starts_from_a_seed_template_and_may_keep_it():
    found = evolve(lambda prompt: "```\nnothing\n```", gepa_budget="40", gepa_seed_template="RED BLUE")
    assert found.candidates == ["RED BLUE"] and found.chosen == [0] and found.weights == [1.0]


def test_same_seed_same_evolution():
    def reflect(prompt):
        return f"```\n{random.Random(prompt).choice(['RED', 'BLUE', 'green'])}\n```"

    runs = [evolve(reflect, gepa_budget="150", seed=3) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("reply", ["", "```\nRED and cut off", ("RED", True), ("```\nRED\n```\nThis", True)])
def test_a_useless_reflection_is_not_adopted_and_ends_the_search_early(reply):
    """A reply that ran out of tokens is never adopted, whatever stands in it."""
    log = []
    found = evolve(lambda p: reply, gepa_budget="5000", log=log.append)
    assert found.candidates == [""] and found.chosen == []
    assert found.rejected_replies == gepa_glue.MAX_FAILED_REFLECTIONS
    assert found.metric_calls < 100  # of 5000
    assert "in a row" in found.stopped_early and any("ends after" in line for line in log)
    assert f"0 of {found.rejected_replies} reflections named a usable instruction" in log


def test_a_reflection_model_that_fails_ends_the_search_with_its_reason():
    def reflect(prompt):
        raise ConnectionError("endpoint is down")

    found = evolve(reflect, gepa_budget="5000")
    assert "endpoint is down" in found.stopped_early and found.metric_calls < 100


def test_a_template_that_leaves_no_room_is_not_adopted():
    found = evolve(lambda p: "```\nRED BLUE\n```", gepa_budget="5000", limits=gepa_loop.TextLimits(room=5))
    assert found.candidates == [""] and "no room" in found.stopped_early


def test_a_given_template_that_leaves_no_room_is_left_out_with_a_word():
    found, said = evolve(lambda prompt: "```\nnothing\n```", gepa_budget="40"), []
    found = dataclasses.replace(found, candidates=["", "RED", "RED BLUE GREEN"], chosen=[0, 2, 1])
    limits = gepa_glue.TextLimits(count=lambda text: len(text.split()), room=3)
    gepa_glue.leave_out_long_templates(found, limits, said.append)
    assert found.chosen == [0, 1]
    assert said == ["1 of 3 templates leave no room for the longest question: left out"]


def test_one_question_is_too_few_to_search_on():
    with pytest.raises(UserError, match="needs 2 hard questions, to reflect on and score with; got 1"):
        gepa_loop.split_hard_set([Question("a", "", "")], 10, random.Random(0))


def test_an_answer_function_that_raises_ends_the_run():
    def broken(messages):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        evolve(lambda p: "```\nx\n```", respond=broken, gepa_budget="50")


def test_reflections_of_one_iteration_go_out_as_one_batch():
    sizes = []

    def reflect(prompts):
        sizes.append(len(prompts))
        return ["```\nRED\n```"] * len(prompts)

    cfg = EvolutionConfig(gepa_dev_size=8, gepa_budget="60", gepa_parents=4)
    gepa_loop.evolve(hard_questions(), respond, reflect, cfg)
    assert max(sizes) == 4


# --------------------------------------------------------------------------------- components, fronts, tokens


def respond_to_parts(messages):
    """A red question is solved under a system message with RED in it, a blue one under a template with BLUE."""
    replies = []
    for message in messages:
        *system, user = [part["content"] for part in as_messages(message)]
        template, _, question = user.rpartition("\n\n")
        colour, number = question.split()
        solved = "RED" in system if colour == "red" else "BLUE" in template
        replies.append((f"\\boxed{{{number if solved else -1}}}", False))
    return replies


def evolve_parts(reflect, **settings):
    cfg = {"gepa_system": True, "gepa_dev_size": 8, "gepa_budget": "300"} | settings
    return gepa_loop.evolve(hard_questions(), respond_to_parts, reflect, EvolutionConfig(**cfg))


def test_a_system_message_and_a_template_evolve_in_turn():
    def reflect(prompt):  # whatever it is asked to better, it has one word of two
        return f"```\n{random.Random(prompt).choice(['RED', 'BLUE'])}\n```"

    found = evolve_parts(one_by_one(reflect), gepa_parents=2)
    assert found.candidates[0] == "" and all(len(parents) == 1 for parents in found.parents)
    assert found.weights == [1.0]
    assert [found.candidates[k] for k in found.chosen] == ["RED\n<the system message ends here>\n\nBLUE"]


@pytest.mark.parametrize("front, both", [("instance", True), ("objective", False), ("hybrid", True)])
def test_by_question_a_specialist_stays_a_parent_and_by_objective_only_the_best_of_all_does(front, both):
    def respond(messages):
        asked = [message.rpartition("\n\n") for message in messages]
        solved = [z == ("MOST" if int(q.split()[1]) % 4 else "REST") for z, _, q in asked]
        pairs = zip((q.split()[1] for _, _, q in asked), solved, strict=True)
        return [(f"\\boxed{{{number if right else -1}}}", False) for number, right in pairs]

    current = []

    def reflect(prompt):
        current.append(prompt.split("```")[1].strip())
        return f"```\n{'REST' if current[-1] == 'MOST' else 'MOST'}\n```"

    found = evolve(reflect, respond=respond, gepa_budget="400", gepa_front=front, gepa_dev_size=16)
    assert {"MOST", "REST"} <= set(found.candidates)
    assert ("REST" in current) == both


def test_reward_and_form_are_the_objectives():
    verdicts = [verify.Verdict(1.0, ""), verify.Verdict(0.0, "", well_formed=False)]
    evaluator = gepa_glue.Evaluator(lambda pairs: [("text", v, {}) for v in verdicts], gepa_glue.Meter(len, 0))
    batch = evaluator.evaluate(["a", "b"], {"template": ""})
    assert batch.scores == [1.0, 0.0]
    assert batch.objective_scores == [{"reward": 1.0, "well formed": 1.0}, {"reward": 0.0, "well formed": 0.0}]


def test_a_search_ends_when_its_tokens_are_spent():
    sampled = []

    def counted(call):
        def called(inputs):
            outputs = call(inputs)
            sampled.extend(text if isinstance(text, str) else text[0] for text in outputs)
            return outputs

        return called

    cfg = EvolutionConfig(gepa_dev_size=8, gepa_budget="400", gepa_tokens=1000)
    found = gepa_loop.evolve(hard_questions(), counted(respond), counted(one_by_one(lambda p: "```\ngreen\n```")), cfg)
    assert 1000 <= found.tokens == sum(map(len, sampled)) < 1500 and found.metric_calls < 200
    assert found.stopped_early is None


def test_a_search_that_goes_on_from_a_journal_has_spent_the_same_tokens(tmp_path):
    cfg = EvolutionConfig(gepa_dev_size=8, gepa_system=True, gepa_tokens=1500)

    def search(file, calls_until_killed):
        left = iter(range(calls_until_killed))

        def mortal(call):
            def called(inputs, _):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return call(inputs)

            return called

        wrap = checkpoint.journaled(tmp_path / file)
        reflect = one_by_one(lambda p: f"```\n{random.Random(p).choice(['RED', 'green'])}\n```")
        calls = wrap("respond", mortal(respond_to_parts)), wrap("reflect", mortal(reflect))
        return gepa_loop.evolve(hard_questions(), *calls, cfg)

    whole = search("whole", 1000)
    assert whole.tokens >= 1500 and len(whole.candidates) > 1
    with pytest.raises(KeyboardInterrupt):
        search("killed", 6)
    assert search("killed", 1000) == whole


# ---------------------------------------------------------------------------------------------- reflection by a teacher


RECORD = gepa_loop.reflection_record(
    "Add these digits: 4, 7, 9, 9, 8.", "4. \\boxed{4}", "The answer 4 is wrong. The right answer is 37."
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    port, model = free_port(), str(ROOT / "tiny" / "united" / "model")
    command = [str(Path(sys.executable).parent / "transformers"), "serve", model, "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, "the server did not start"
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(timeout=20)


def teacher_of(url, model, timeout=120.0, retries=0, **settings):
    cfg = EvolutionConfig(reflection="teacher", teacher_url=url, teacher_model=model, **settings)
    return teacher(cfg, timeout, retries)


def test_a_real_server_reflects_one_by_one_and_in_a_batch(server):
    reflect = teacher_of(*server)
    prompt = gepa_loop.reflection_prompt("Stay calm.", [RECORD] * 3)
    assert "```" in reflect([prompt])[0]
    replies = reflect([prompt] * 6)
    assert sum(gepa_loop.parse_reflection(reply) is not None for reply in replies) >= 3


def test_a_reply_that_was_cut_off_is_empty(server):
    assert teacher_of(*server, reflection_tokens=2)([gepa_loop.reflection_prompt("", [RECORD])]) == [""]


def test_the_limits_on_calls_and_tokens_hold(server):
    reflect = teacher_of(*server, teacher_max_calls=2)
    prompt = gepa_loop.reflection_prompt("", [RECORD])
    reflect([prompt] * 2)
    with pytest.raises(RuntimeError, match=r"limit is used up \(2 calls, [1-9]\d* tokens\)"):
        reflect([prompt])
    reflect = teacher_of(*server, teacher_max_tokens=10)
    reflect([prompt])
    with pytest.raises(RuntimeError, match="limit is used up"):
        reflect([prompt])


def test_an_endpoint_that_is_down_raises_without_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    reflect = teacher_of(f"http://127.0.0.1:{free_port()}/v1", "any", timeout=2)
    with pytest.raises(ConnectionError) as error:
        reflect(["hello"])
    assert "sk-very-secret" not in str(error.value) and "127.0.0.1" in str(error.value)


# ------------------------------------------------------------------------------------------ endpoints that misbehave


@pytest.fixture
def endpoint():
    """A real HTTP server on loopback whose replies the test scripts: (status, body, seconds to wait)."""
    script, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.headers["Authorization"])
            status, body, wait = script[min(len(asked), len(script)) - 1]
            time.sleep(wait)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(BrokenPipeError):  # the client has given up
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    often = {"poll_interval": 0.01}  # seconds until it notices that it is to stop
    threading.Thread(target=server.serve_forever, kwargs=often, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", script, asked
    server.shutdown()


def completion(text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(body | {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}).encode()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_rate_limit_or_a_server_error_is_tried_again(endpoint, status):
    url, script, asked = endpoint
    script += [(status, b"{}", 0), (200, completion("```\nDo it.\n```"), 0)]
    assert teacher_of(url, "m", retries=3)(["hello"]) == ["```\nDo it.\n```"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    "reply", [(200, b"<html>not json", 0), (401, b"{}", 0), (503, b"{}", 0), (200, completion("x"), 3)]
)
def test_garbage_refusal_and_silence_raise_and_end_the_search(endpoint, reply, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    url, script, asked = endpoint
    script.append(reply)
    reflect = teacher_of(url, "m", timeout=0.5, retries=1)
    with pytest.raises(ConnectionError) as error:
        reflect(["hello"])
    assert asked[0] == "Bearer sk-very-secret" and "sk-very-secret" not in str(error.value)
