"""support/answers/sandbox.py: hostile answers, and workers that hang, die, stand still or are interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import verify
from support.answers import sandbox
from verify import equivalent, grade, grade_batch, unparseable

REPO = Path(verify.__file__).parent


@pytest.fixture
def impatient(monkeypatch):
    """A short limit, so that hanging answers do not take up the test run's time."""
    equivalent("x+1", "x+2")  # a worker that has started
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.2)


@pytest.fixture
def worker(monkeypatch):
    """The only worker, idle. One that is there is taken: to start another takes longer than any of these tests."""
    if len(sandbox._pool.idle) > 1:
        sandbox.stop_workers()
    assert equivalent("x+x", "2x")
    (process,) = sandbox._pool.idle
    return process


HANGS = {
    "tower": "9^{9^{9^{9^9}}}",
    "factorial": "99999999999!",
    "factorials": "((9999!)!)!",
    "power": "x^{10^{10^{10}}}-1",
    "sum": r"\sum_{n=1}^{10^{12}} n^{-1/3}",
    "product": r"\prod_{k=1}^{10^9} k",
    "nested roots": r"\sqrt{" * 300 + "2" + "}" * 300,
    "signs": "-" * 1_900 + "1",
    "big exponent": "9" * 400 + "^{" + "9" * 400 + "}",
    "expand": "(" + "+".join("abcdefgh") + ")^{60}-1",
}
CHEAP = {
    "braces": "{" * 10_000 + "1" + "}" * 10_000,
    "digits": "7" * 3_000_000,
    "null": "5\x00",
    "bidirectional": "\u202e5",
    "half a character": "\ud8005",
    "unclosed": r"\boxed{" * 100_000,
    "a million boxes": r"\boxed{}" * 1_000_000,
    "a million answers": r"\boxed{1}" * 1_000_000,
    "backslashes": "\\" * 1_000_000,
    "dollars": "$" * 100_000,
    "brackets": r"\(" * 50_000,
    "spaces": "1" + " " * 200_000 + "2",
    "text": r"5\text{a} " * 180 + "!",
    "words": "5 " + "abcd" * 480 + "!",
    "exponent": "2e999999999",
    "commas": "1,000" * 300,
    "format": "{0.__class__}%s%n",
}


@pytest.mark.parametrize("name", HANGS)
def test_hanging_answer_is_wrong_in_time(name, impatient):
    assert not grade(rf"\boxed{{{HANGS[name]}}}", "x+5").correct
    assert equivalent("x+x", "2x")  # the next answer is served


@pytest.mark.parametrize("name", CHEAP)
def test_hostile_text_is_wrong_in_time(name, impatient):
    assert not grade(rf"\boxed{{{CHEAP[name]}}}", "5").reward
    assert not equivalent(CHEAP[name], "5") and not equivalent("5", CHEAP[name])


def test_code_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    for text in [code, f"${code}$", rf"\text{{{code}}}", f"Answer: {code}", f"1+{code}"]:
        assert not equivalent(text, "5") and not grade(rf"\boxed{{{text}}}", "5").reward and not equivalent("5", text)
    unparseable([code])
    assert not mark.exists()


def test_nothing_reaches_eval_and_nothing_printed_is_a_verdict(tmp_path):
    """The worker itself, whose `eval` is taken away once its imports are done, answers questions of every kind."""
    code = "import os, sys, sympy.physics.units, sympy.parsing.sympy_parser as parser\n"
    code += "from support.answers import sandbox, symbolic; same = symbolic.same; same('x+1.5', 'x^2')\n"
    code += "symbolic.same = lambda *question: (os.write(1, b'1 '), same(*question))[1]\n"
    code += "def no(*a, **k): sys.stderr.write('eval!'); sys.exit(7)\n"
    code += "parser.eval = no; sys.stdin = open(sys.argv[1]); sandbox._serve()"
    questions = [["3 * (4 + 5)", "27"], [r"\frac{1.5}{x}", r"\frac{3}{2x}"]]
    questions += [["2**0.1234567", "7"], [r"[1,2]\cup\{3\}", r"\{3\}\cup[1,2]"], ["1234.5+x", "x+1234.5"]]
    path = tmp_path / "questions"
    path.write_text("\n" + "".join(json.dumps([9, *question]) + "\n" for question in questions))
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=REPO)
    assert out.stdout.split() == ["ready", "1", "1", "0", "1", "1"] and "eval!" not in out.stderr
    assert sandbox.ask([tuple(question) for question in questions]) == [True, True, False, True, True]


def test_off_the_main_thread(impatient):
    results = {}

    def work(i: int) -> None:
        results[i] = (equivalent("x+x", "2x"), equivalent(HANGS["tower"], "x+5"), equivalent("x+x", "3x"))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results == dict.fromkeys(range(2), (True, False, False))


def test_a_killed_worker_is_replaced(worker):
    worker.kill()
    worker.wait()
    assert equivalent("x+x", "2x") and sandbox._pool.idle[0].pid != worker.pid and worker.stdout.closed


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_dead_child_is_replaced_and_the_worker_stays(worker, monkeypatch):
    """Whether it died of a question or between two of them, the next answer is right."""
    (first,) = children_of(worker.pid)
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.3)
    assert not equivalent(HANGS["tower"], "x+5") and equivalent("x+x", "2x")
    (second,) = children_of(worker.pid)
    os.kill(int(second), signal.SIGKILL)
    assert equivalent("x+x", "2x") and not equivalent("x+x", "3x")
    (third,) = children_of(worker.pid)
    assert len({first, second, third}) == 3 and sandbox._pool.idle == [worker]


def test_a_busy_machine_does_not_turn_a_verdict(worker, monkeypatch):
    """The limit is the CPU time: stopped for longer than the limit, worker and child still answer."""
    monkeypatch.setattr(sandbox, "TIME_LIMIT", 0.5)
    stopped = [worker.pid, *map(int, children_of(worker.pid) if sys.platform.startswith("linux") else ())]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.8, os.kill, [pid, signal.SIGCONT]).start()
    assert equivalent("x+x+x", "3x")


def test_a_worker_that_stands_still_is_replaced(worker, monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.3)
    os.kill(worker.pid, signal.SIGSTOP)
    assert not equivalent("x+x+x", "3x")
    monkeypatch.undo()
    assert equivalent("x+x", "2x")


def test_memory_of_the_worker_is_limited(worker):
    resource = pytest.importorskip("resource")
    if hasattr(resource, "prlimit"):
        assert resource.prlimit(worker.pid, resource.RLIMIT_AS)[0] == sandbox.MEMORY_LIMIT


def test_a_batch_is_shared_and_keeps_its_order(monkeypatch):
    sandbox.stop_workers()
    monkeypatch.setattr(sandbox, "WORKERS", 3)
    monkeypatch.setattr(sandbox, "_pool", sandbox.Pool())
    questions = [(f"x+{i}x", f"{i + 1 + i % 2}x") for i in range(2, 12)]
    assert sandbox.ask(questions[: sandbox.SHARE]) == [True, False] * 4
    assert len(sandbox._pool.idle) == 1, "few questions are not worth the start of another worker"
    assert sandbox.ask(questions) == [True, False] * 5
    assert len({worker.pid for worker in sandbox._pool.idle}) == 2
    workers = list(sandbox._pool.idle)
    sandbox.stop_workers()
    assert all(worker.returncode is not None for worker in workers), "nobody has waited for one: a zombie"


def test_a_batch_with_hanging_answers_keeps_the_others(impatient):
    responses = [rf"\boxed{{{text}}}" for text in ("x+x", HANGS["tower"], "x+2x", HANGS["sum"], "y")]
    assert [g.reward for g in grade_batch(responses, ["2x", "2x", "3x", "3x", "2y"])] == [1, 0, 1, 0, 0]


def test_plain_answers_need_no_worker_and_no_guard():
    """In a script without `if __name__ == "__main__"`: numbers start no worker, and it does not run the script."""
    code = "import sys, verify\nfrom support.answers import sandbox\n"
    code += "reward = verify.grade('\\\\boxed{24}', '24').reward\n"
    code += "print(reward, sandbox._pool.idle, 'sympy' in sys.modules); print(verify.equivalent('x+x', '2x'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=60)
    assert out.stdout == "1.0 [] False\nTrue\n" and out.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_worker():
    assert equivalent("x+x", "2x")
    child = os.fork()
    if child == 0:
        good = equivalent("x+x+x", "3x") and not equivalent("x+x+x", "4x")
        sandbox.stop_workers()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert equivalent("x+x", "2x") and not equivalent("x+x", "3x")


def test_an_interrupt_does_not_shift_the_verdicts(worker, monkeypatch):
    monkeypatch.setattr(worker.stdout, "readline", interrupt)
    with pytest.raises(KeyboardInterrupt):
        equivalent("y+y", "2y")
    assert not equivalent("x+x", "3x") and equivalent("x+x", "2x")


def interrupt():
    raise KeyboardInterrupt
