"""Which tests reach which functions: a pytest plugin that writes down what of this repository runs in each test.

What a shared fixture runs counts for every test that uses it. What runs in another process is not seen.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import CodeType, FrameType

import pytest


class Reach:
    """`tests`: {test: {"seconds": ..., "functions": ["grpo.py:surrogate", ...], "passed": ...}}."""

    def __init__(self, root: Path):
        self.root, self.tests = root, {}
        self.codes: set[CodeType] = set()  # of the test or fixture that runs
        self.fixtures: dict[str, set[CodeType]] = {}

    def profile(self, frame: FrameType, event: str, _) -> None:
        if event == "call":
            self.codes.add(frame.f_code)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        outer, self.codes = self.codes, set()
        try:
            return (yield)
        finally:
            self.fixtures.setdefault(fixturedef.argname, set()).update(self.codes)
            self.codes |= outer

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        self.codes, started = set(), time.perf_counter()
        self.tests[item.nodeid] = {"passed": True}
        for install in (sys.setprofile, threading.setprofile):
            install(self.profile)
        try:
            return (yield)
        finally:
            for install in (sys.setprofile, threading.setprofile):
                install(None)
            codes = self.codes.union(*(self.fixtures.get(name, ()) for name in item.fixturenames))
            found = {"seconds": round(time.perf_counter() - started, 2), "functions": self.names(codes)}
            self.tests[item.nodeid].update(found)

    def pytest_runtest_logreport(self, report) -> None:
        self.tests[report.nodeid]["passed"] &= not report.failed

    def names(self, codes: set[CodeType]) -> list[str]:
        """Those of the repository's functions, by file and name; what stands inside a function counts as its own."""
        ours = [code for code in codes if code.co_filename.startswith(f"{self.root}/")]
        return sorted({f"{Path(code.co_filename).relative_to(self.root)}:{code.co_name}" for code in ours})
