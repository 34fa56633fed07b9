"""Teacher reflection against a real OpenAI-compatible server on loopback: `transformers serve` with the tiny model."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT

import gepa_loop

RECORD = gepa_loop.reflection_record(
    "Add these digits: 4, 7, 9, 9, 8.", "4. \\boxed{4}", "The answer 4 is wrong. The right answer is 37."
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    port, model = free_port(), str(ROOT / "tiny" / "model")
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


def teacher(url, model, **settings):
    defaults = {"max_tokens": 60, "temperature": 1.0, "max_calls": 100, "max_total_tokens": 10**6, "retries": 0}
    return gepa_loop.teacher(url, model, **(defaults | settings))


def test_a_real_server_reflects_one_by_one_and_in_a_batch(server):
    reflect = teacher(*server)
    prompt = gepa_loop.reflection_prompt("Stay calm.", [RECORD] * 3)
    assert "```" in reflect(prompt)
    replies = reflect.batch([prompt] * 6)
    assert sum(gepa_loop.parse_reflection(reply) is not None for reply in replies) >= 3


def test_a_reply_that_was_cut_off_is_empty(server):
    assert teacher(*server, max_tokens=2)(gepa_loop.reflection_prompt("", [RECORD])) == ""


def test_the_limits_on_calls_and_tokens_hold(server):
    reflect = teacher(*server, max_calls=1)
    prompt = gepa_loop.reflection_prompt("", [RECORD])
    reflect(prompt)
    with pytest.raises(RuntimeError, match="limit is used up"):
        reflect(prompt)
    reflect = teacher(*server, max_total_tokens=10)
    reflect(prompt)
    with pytest.raises(RuntimeError, match="limit is used up"):
        reflect(prompt)


def test_an_endpoint_that_is_down_raises_without_the_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    reflect = teacher(f"http://127.0.0.1:{free_port()}/v1", "any", timeout=2)
    with pytest.raises(ConnectionError) as error:
        reflect("hello")
    assert "sk-very-secret" not in str(error.value) and "127.0.0.1" in str(error.value)
