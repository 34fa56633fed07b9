"""Do the tests notice? One small change at a time in the modules, support/ and variants/, and the tests that reach it.

    python bench/mutate.py --minutes 30              # goes on where it was stopped; results/mutants.jsonl and .md
    python bench/mutate.py --minutes 30 --sample 20  # the same twenty of each row of the table
    python bench/mutate.py --minutes 0               # the table alone, from what is known

A mutant that was noticed once is not tried again; one that survived is, when a test has changed since. To measure all
anew, delete the two files, and runs/reach, where it stands which test reaches which function (bench/reach.py). Mutants
that nobody could tell from the original are listed in bench/equivalent.json, each with its reason.

Libraries are imported once; every mutant gets a fork of that process and a copy of the repository.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.mutants import Mutant, mutants  # noqa: E402
from bench.reach import Reach  # noqa: E402

SEED = "20260321"
RESULTS = ROOT / "results" / "mutants.jsonl"
REACH = ROOT / "runs" / "reach"
FILES = ["grpo.py", "gepa_loop.py", "p2o.py", "verify.py"]
FILES += [
    str(file.relative_to(ROOT)) for folder in ("support", "variants") for file in sorted(ROOT.glob(f"{folder}/*.py"))
]
FILES.remove("support/vllm_engine.py")  # needs an environment of its own: make test-vllm
# The core's own tests. Those of what stands on it (tools, tiny/, notebooks, assignment) take minutes, and what they
# would notice these have to notice.
TESTS = """examples grpo by_hand gepa_loop golden p2o variants data verify sandbox resume memory cache report track
    teacher real_models""".split()
ELSEWHERE = dict.fromkeys(  # runs in another process, too, on behalf of this function
    ["support/symbolic.py"]
    + [f"support/sandbox.py:{name}" for name in "_serve _fork _answer _verdict _limit_time _limit_memory".split()],
    "support/sandbox.py:ask",
)
# Losses, advantages, masks, log-probs, update; mining, the loop; cover, assignment; reward.
PROMISED = {
    "grpo.py": """group_advantages advantages_of aggregate importance_ratio surrogate policy_loss template_ratio_weight
        kl_k3 groups_of distilled teaches padded micro_batches _chosen_logprobs token_logprobs logprobs_of mismatch
        score_old warmed_up loss_of update_policy""".split(),
    "p2o.py": "train choose_questions sample_groups mine_hard remember choose_rollouts in_updates prepare".split(),
    "gepa_loop.py": "greedy_cover assign_templates weights".split(),
    "verify.py": "extract_boxed _after_thinking _decide _verdicts grade_batch judge judge_of".split(),
    "support/shared_prompt.py": "pays hidden_states".split(),
    "support/memory.py": ["adamw"],
}
LIBRARIES = """torch transformers transformers.models.llama.modeling_llama peft bitsandbytes gepa tyro hypothesis sympy
    datasets safetensors.torch matplotlib.pyplot""".split()


@dataclass(frozen=True)
class Candidate:
    """A mutant of a file; `name` tells it from the others of that file, wherever its line may move."""

    file: str
    name: str
    mutant: Mutant

    @property
    def row(self) -> tuple[str, bool]:
        """Its row of the table: the file, and whether its function is one of those that were promised most for."""
        return self.file, self.mutant.function in PROMISED.get(self.file, ())

    @property
    def order(self) -> tuple[bool, str]:
        """At random, but the same for every run, and for what stays when the file changes; the promised ones first."""
        return not self.row[1], hashlib.sha256(f"{SEED}/{self.file}/{self.name}".encode()).hexdigest()

    @property
    def equivalent(self) -> str:
        return equivalent().get(self.name, "")


@cache
def equivalent() -> dict[str, str]:
    """{name: reason}; the grader's are the tests', too."""
    known = [
        json.loads((ROOT / "bench" / f"{kind}.json").read_text()) for kind in ("assignment_equivalent", "equivalent")
    ]
    return known[0] | known[1]


def candidates() -> list[Candidate]:
    found, seen = [], {}
    for file in FILES:
        for mutant in mutants((ROOT / file).read_text(encoding="utf-8")):
            number = seen[file, mutant.name] = seen.get((file, mutant.name), 0) + 1
            found.append(Candidate(file, mutant.name + (f" #{number}" if number > 1 else ""), mutant))
    return sorted(found, key=lambda candidate: candidate.order)


def sampled(found: list[Candidate], size: int | None) -> list[Candidate]:
    """The first `size` of each row; all by default."""
    taken: dict[tuple, int] = {}
    kept = []
    for candidate in found:
        taken[candidate.row] = taken.get(candidate.row, 0) + 1
        if size is None or taken[candidate.row] <= size:
            kept.append(candidate)
    return kept


# ------------------------------------------------------------------------------------------------------- in a process


def in_a_copy(work: Callable[[Path], dict], change: dict[str, str]) -> dict:
    """What `work` gives in a fork of this process and a copy of the repository with these files changed.

    {"outcome": "hung"} if the fork dies without a word: its alarm has ended it.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        ignored = shutil.ignore_patterns(".*", "runs", "*.png", "__pycache__", "notebooks", "student")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for file, source in change.items():
            (copy / file).write_text(source, encoding="utf-8")
        said, saying = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=forked, args=(work, copy, saying))
        process.start()
        saying.close()
        try:
            found = said.recv()
        except EOFError:
            found = {"outcome": "hung"}
        try:
            os.killpg(process.pid, signal.SIGKILL)  # whatever the tests have started
        except ProcessLookupError:
            pass
        process.join()
        return found


def forked(work: Callable[[Path], dict], copy: Path, saying) -> None:
    os.setsid()
    silent = os.open(copy.parent / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(silent, 1), os.dup2(silent, 2)
    os.chdir(copy)
    sys.path[:] = [path for path in sys.path if not path.startswith(str(ROOT)) or "site-packages" in path]
    for name in [name for name in sys.modules if name.split(".")[0] == "bench"]:
        del sys.modules[name]  # the copy's
    sys.modules["__main__"] = types.ModuleType("__main__")  # of which a process starts that a test spawns
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"  # it would hide the next mutant
    saying.send(work(copy))


def run_pytest(copy: Path, files: list[str], plugin, *options: str) -> int:
    quick = ["-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain"]  # nobody reads what they print
    return pytest.main([*quick, "--hypothesis-seed=0", f"--rootdir={copy}", *options, *files], plugins=[plugin])


def reach_of(name: str) -> dict:
    """{test: its seconds and functions} of a test file; measured when it has changed, or what there is to reach."""
    test = ROOT / "tests" / f"test_{name}.py"
    there_is = [re.findall(r"def \w+|>>> .*", (ROOT / file).read_text(encoding="utf-8")) for file in FILES]
    digest = hashlib.sha256(test.read_bytes() + repr(there_is).encode()).hexdigest()[:12]
    kept = REACH / f"{name}-{digest}.json"
    if not kept.exists():
        found = in_a_copy(lambda copy: measured(copy, f"tests/{test.name}"), {})
        if failed := [known for known, test in found.items() if not test["passed"]]:
            sys.exit(f"these tests fail as it is: {', '.join(failed)}")
        REACH.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
        print(f"{test.name}: {len(found)} tests, {sum(test['seconds'] for test in found.values()):.0f} s", flush=True)
    return json.loads(kept.read_text(encoding="utf-8"))


def measured(copy: Path, file: str) -> dict:
    plugin = Reach(copy)
    code = run_pytest(copy, [file], plugin)
    return plugin.tests if code in (0, 1) and plugin.tests else {file: {"passed": False}}


class Only:
    """The pytest plugin of a mutant: these tests alone, the quickest first, each under an alarm that ends it all."""

    def __init__(self, tests: dict[str, float]):
        self.tests, self.failed = tests, ""

    def pytest_collection_modifyitems(self, items: list) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.tests), key=lambda i: self.tests[i.nodeid])

    def pytest_runtest_logstart(self, nodeid: str, location) -> None:
        signal.alarm(30 + int(10 * self.tests[nodeid]))  # generous: other work may keep the machine busy

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.failed = report.nodeid


def outcome(candidate: Candidate, tests: dict[str, float]) -> dict:
    """What becomes of a mutant: killed, and by which test; hung; survived; or no test reaches it."""
    started, row = time.perf_counter(), {"file": candidate.file, "name": candidate.name}
    if not tests:
        return row | {"outcome": "unreached"}
    plugin, files = Only(tests), sorted({test.partition("::")[0] for test in tests})

    def work(copy: Path) -> dict:
        code = run_pytest(copy, files, plugin, "-x")
        by = plugin.failed or f"collection (code {code})"
        return {"outcome": "survived"} if code == 0 else {"outcome": "killed", "by": by}

    found = in_a_copy(work, {candidate.file: candidate.mutant.source})
    return row | found | {"seconds": round(time.perf_counter() - started, 1)}


# ---------------------------------------------------------------------------------------------------------- all of them


def prepare() -> None:
    """What every fork is to find: libraries in memory, one thread, no bytecode of a repository's file."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # or every fork would look through all of that for garbage


def tests_digest() -> str:
    """Of the tests, and of the examples in docstrings, which are tests, too."""
    whole = [(ROOT / "tests" / f"test_{name}.py").read_text(encoding="utf-8") for name in TESTS]
    whole += [example for file in FILES for example in re.findall(r">>> .*", (ROOT / file).read_text(encoding="utf-8"))]
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()[:12]


def known_results() -> dict[tuple[str, str], dict]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return {(row["file"], row["name"]): row for row in map(json.loads, lines)}


def outstanding(found: list[Candidate]) -> list[Candidate]:
    """Those of which nothing is known, or that survived other tests than today's."""
    known, today = known_results(), tests_digest()

    def open_(candidate: Candidate) -> bool:
        row = known.get((candidate.file, candidate.name))
        return row is None or row["outcome"] in ("survived", "unreached") and row["tests"] != today

    return [candidate for candidate in found if not candidate.equivalent and open_(candidate)]


def run(found: list[Candidate], deadline: float) -> Iterator[dict]:
    """The outcome of each, as it comes, on all cores; none is begun after the deadline."""
    prepare()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        reach = {test: seen for part in pool.map(reach_of, TESTS) for test, seen in part.items()}
        tasks, running = iter(found), set()
        while True:
            while len(running) < os.cpu_count() and time.time() < deadline and (task := next(tasks, None)):
                place = f"{task.file}:{task.mutant.function}"
                places = {place, ELSEWHERE.get(task.file), ELSEWHERE.get(place)}
                tests = {test: seen["seconds"] for test, seen in reach.items() if places & set(seen["functions"])}
                running.add(pool.submit(outcome, task, tests))
            if not running:
                return
            for done in [task for task in running if task.done()] or time.sleep(0.1) or ():
                running.remove(done)
                yield done.result()


def table(found: list[Candidate]) -> str:
    """Markdown: of each row its mutants, how many were tried, how many were noticed; the others by name."""
    known = known_results()
    states = {c: "equivalent" if c.equivalent else known.get((c.file, c.name), {}).get("outcome") for c in found}
    rows = sorted({candidate.row for candidate in found}, key=lambda row: (not row[1], FILES.index(row[0])))
    lines = ["| module | mutants | equivalent | tried | noticed | of those tried |", "|" + " --- |" * 6]
    for promised, kind in ((True, "promised"), (False, "the rest")):
        these = [row for row in rows if row[1] is promised]
        lines += [line_of(f"{row[0]}, {kind}", [states[c] for c in found if c.row == row]) for row in these]
        lines.append(line_of(f"**{kind}**", [states[c] for c in found if c.row in these]))
    survivors = [c for c, state in states.items() if state in ("survived", "unreached")]
    lines += ["", "Not noticed:" if survivors else "All that were tried are noticed.", ""]
    lines += [f"- {c.file}, {c.name}{' (no test reaches it)' * (states[c] == 'unreached')}" for c in survivors]
    lines += ["", "Equivalent, and why:", ""]
    lines += [f"- {c.file}, {c.name}: {c.equivalent}" for c in found if c.equivalent]
    return "\n".join(lines) + "\n"


def line_of(title: str, states: list[str | None]) -> str:
    """A line of the table.

    >>> line_of("grpo.py", ["killed", "survived", "equivalent", None])
    '| grpo.py | 4 | 1 | 2 | 1 | 50.0% |'
    """
    tried = [state for state in states if state not in (None, "equivalent")]
    noticed = sum(state in ("killed", "hung") for state in tried)
    share = f"{noticed / len(tried):.1%}" if tried else ""
    return f"| {title} | {len(states)} | {states.count('equivalent')} | {len(tried)} | {noticed} | {share} |"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="no mutant is begun after that")
    parser.add_argument("--sample", type=int, help="so many of each row of the table; all by default")
    options = parser.parse_args(argv)
    found, today = candidates(), tests_digest()
    todo = outstanding(sampled(found, options.sample))
    for row in run(todo, time.time() + 60 * options.minutes) if options.minutes else ():
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"tests": today}) + "\n")
        print(f"{row['outcome']:9} {row['file']}, {row['name']}  {row.get('by', '')}", flush=True)
    made = "Made by `python bench/mutate.py` (bench/mutate.py says how), order of the mutants by seed " + SEED
    RESULTS.with_suffix(".md").write_text(f"{made}.\n\n{table(found)}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
