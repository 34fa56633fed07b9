"""Teacher reflection against a real OpenAI-compatible server on loopback: `transformers serve` with the tiny model."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

import gepa_loop
from gepa_loop import EvolutionConfig
from support.teacher import teacher

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


def teacher_of(url, model, max_calls=100, max_total_tokens=10**6, max_tokens=60, **how):
    cfg = EvolutionConfig(
        reflection="teacher", teacher_url=url, teacher_model=model, teacher_max_calls=max_calls,
        teacher_max_tokens=max_total_tokens,
    )  # fmt: skip
    return teacher(cfg, max_tokens, temperature=1.0, **({"retries": 0} | how))


def test_a_real_server_reflects_one_by_one_and_in_a_batch(server):
    reflect = teacher_of(*server)
    prompt = gepa_loop.reflection_prompt("Stay calm.", [RECORD] * 3)
    assert "```" in reflect([prompt])[0]
    replies = reflect([prompt] * 6)
    assert sum(gepa_loop.parse_reflection(reply) is not None for reply in replies) >= 3


def test_a_reply_that_was_cut_off_is_empty(server):
    assert teacher_of(*server, max_tokens=2)([gepa_loop.reflection_prompt("", [RECORD])]) == [""]


def test_the_limits_on_calls_and_tokens_hold(server):
    reflect = teacher_of(*server, max_calls=2)
    prompt = gepa_loop.reflection_prompt("", [RECORD])
    reflect([prompt] * 2)
    with pytest.raises(RuntimeError, match=r"limit is used up \(2 calls, [1-9]\d* tokens\)"):
        reflect([prompt])
    reflect = teacher_of(*server, max_total_tokens=10)
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
