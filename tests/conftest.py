import functools
import gc
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs a network, and none should wait for one
sys.path.insert(0, str(ROOT))

# The same examples every time: a test that passed is not to fail on a later day without a change. New ones are hunted
# for with `pytest --hypothesis-profile hunt`, whose findings become examples of their own. No deadline: a busy machine
# is no failure.
settings.register_profile("p2o", deadline=None, derandomize=True)
settings.register_profile("hunt", deadline=None)
settings.load_profile("p2o")

# One thread for torch, here and in a process that a test starts: more do not help at this size, and results then do
# not depend on the machine's cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing compiles, but bitsandbytes would load the compiler
# A worker keeps the memory that it has had, or glibc would ask for it anew, zeroed, with every tensor.
os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**30)

# Nobody cuts the power while the tests run.
os.fsync = lambda handle: None

# Importing makes millions of objects, none of them garbage: the collector looks neither while it goes on nor later.
# What the tests leave is little, so it looks less often than it would.
gc.disable()
gc.set_threshold(10_000)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()
    if "grpo" in sys.modules:
        prove_known_models_once()


def prove_known_models_once():
    """Loading a policy tries out what its model does (support/proofs.py). The tests load the tiny models two hundred
    times and the real one a few times, and the same would come out each time. It is done once for the same settings."""
    import grpo
    from support import proofs

    prove, names, proved = proofs.prove, vars(grpo.PolicyConfig()), set()

    @functools.wraps(prove)
    def prove_once(policy, contexts, sample, logprobs_of, longest):
        case = longest, *(getattr(policy.cfg, name) for name in names)
        if case in proved and any(Path(policy.cfg.model).is_relative_to(ROOT / name) for name in ("tiny", "real")):
            policy.head = proofs.find_head(policy.model, contexts[-1])
        else:
            prove(policy, contexts, sample, logprobs_of, longest)
            proved.add(case)

    proofs.prove = prove_once


# A worker takes file after file (--dist loadfile): the long ones first, or the other would wait for the last of them.
LONGEST = (
    "assignment notebooks real resume card variants p2o study verify real_models families tiny grpo report gepa_loop "
    "by_hand golden data examples"
).split()


def pytest_collection_modifyitems(items):
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def tiny_policy():
    """The shipped tiny model with a fresh adapter. Tests that train it take `fresh_policy` instead."""
    return load_tiny()


@pytest.fixture
def fresh_policy():
    return load_tiny()


def write_jsonl(path, rows):
    """A line for each row; returns the path as a text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load_tiny(**settings):
    import grpo

    return grpo.load_policy(grpo.PolicyConfig(**settings))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Leave a test out where torch's own 16-bit attention does not run: told by ATEN_CPU_CAPABILITY to be an older CPU
    than it is, torch chooses a kernel (pack_vnni2) that the older one does not have."""
    try:
        return (yield)
    except Exception as error:
        told_to_be_older = os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2")
        if told_to_be_older and "pack_vnni2" in str(error) + repr(error.__cause__):
            pytest.skip("torch's own 16-bit attention does not run under this ATEN_CPU_CAPABILITY on this CPU")
        raise
