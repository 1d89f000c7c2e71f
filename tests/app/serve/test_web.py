"""Who may come in, health, metrics, many at once, and a queue that is full."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sdcore import Job, TextToImage
from sdcore.app.serve import command, web
from sdcore.app.serve.painter import Busy, Painter, Stopped, Task
from tests.app.serve.conftest import listening


def test_health_metrics_and_the_page_of_the_interface(ask) -> None:
    assert ask.get("/health").json()["status"] == "ok"
    text = ask.get("/metrics").text
    for line in text.splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0
    assert 'sdcore_requests_total{state="done"}' in text
    assert {"/api/paint", "/v1/images/edits", "/sdapi/v1/txt2img"} <= set(
        ask.get("/openapi.json").json()["paths"]
    )


def test_many_at_once_get_what_they_would_get_alone(ask, live, sd_folder) -> None:
    pipe = TextToImage.from_pretrained(sd_folder)

    def painted(seed: int) -> str:
        body = {"prompt": "a fox", "seed": seed, "steps": 2}
        answer = ask.post("/v1/images/generations", json=body).json()
        return hashlib.sha256(answer["data"][0]["b64_json"].encode()).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(painted, [*range(4), *range(4)]))
    assert found[:4] == found[4:] and len(set(found)) == 4
    assert pipe.paint(Job("a fox", seed=1, steps=2)).images


def test_pages_of_others_and_other_hosts_are_refused(ask) -> None:
    for headers in (
        {"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"},
    ):  # fmt: skip
        for path in ("/api/choices", "/health", "/sdapi/v1/options"):
            assert ask.get(path, headers=headers).status_code == 403
    own = str(ask.base_url).rstrip("/")
    assert ask.get("/api/choices", headers={"origin": own}).status_code == 200


def test_a_token_is_needed_where_there_is_one(live) -> None:
    with (
        listening(live.door, Painter(live.door.models), "secret") as closed,
        httpx.Client(base_url=closed.url, trust_env=False) as client,
    ):
        assert client.get("/health").status_code == 200
        for headers in (
            {}, {"authorization": "Bearer wrong"}, {"authorization": "secret"},
            {"authorization": "Basic !!"},
        ):  # fmt: skip
            answer = client.get("/api/choices", headers=headers)
            assert answer.status_code == 401 and "token" in answer.json()["error"]["what"]
        assert client.get("/api/choices", auth=("any", "secret")).status_code == 200
        bearer = {"authorization": "Bearer secret"}
        assert client.get("/api/choices", headers=bearer).status_code == 200


def test_a_body_that_is_too_large_is_not_read(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_BYTES", 1000)
    assert ask.post("/api/read", content=b"x" * 2000).status_code == 400
    assert ask.post("/api/read", content=iter([b"x" * 600] * 3)).status_code == 400


def test_a_full_queue_refuses_and_a_failure_stops_nothing(live) -> None:
    painter = Painter(live.door.models, most=2)

    def fail(session, task):
        raise RuntimeError("as if torch had failed")

    failed = painter.add(Task(fail, live.door.models.first))
    assert "as if torch" in str(failed.done.exception(30))
    gate = threading.Event()
    tasks = [painter.add(Task(lambda *_: gate.wait(30), live.door.models.first))]
    while painter.current is None:
        pass
    tasks += [painter.add(Task(lambda *_: 1, live.door.models.first)) for _ in range(2)]
    with pytest.raises(Busy):
        painter.add(Task(fail, live.door.models.first))
    gate.set()
    assert [task.done.result(30) for task in tasks] == [True, 1, 1]
    painter.close()
    assert not painter.alive


def test_what_waits_ends_at_once_and_what_was_cancelled_ends_nothing(live) -> None:
    painter = Painter(live.door.models, most=4)
    gate = threading.Event()
    painted = painter.add(Task(lambda *_: gate.wait(30), live.door.models.first))
    while painter.current is None:
        pass
    assert not painted.done.cancel()  # its result is on its way
    left, waits = (painter.add(Task(lambda *_: 1, live.door.models.first)) for _ in range(2))
    assert left.done.cancel() and left.state == "stopped"
    painter.stop()
    assert isinstance(waits.done.exception(1), Stopped)
    gate.set()
    assert painted.done.result(30) is True
    last = painter.add(Task(lambda *_: 1, live.door.models.first))
    left = painter.add(Task(lambda *_: 1, live.door.models.first))
    left.done.cancel()
    assert last.done.result(30) == 1
    assert painter.add(Task(lambda *_: 2, live.door.models.first)).done.result(30) == 2
    painter.close()


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations"])
def test_whoever_goes_away_stops_what_was_asked_for(live, path: str) -> None:
    begun, gate = threading.Event(), threading.Event()
    live.painter.add(Task(lambda *_: begun.set() or gate.wait(30), live.door.models.first))
    assert begun.wait(20)
    try:
        with socket.create_connection(("127.0.0.1", live.port)) as client:
            body = b'{"prompt": "a fox", "steps": 1}'
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            until = time.monotonic() + 20
            while live.painter.waiting < 1 and time.monotonic() < until:
                time.sleep(0.01)
            asked = list(live.painter.tasks.values())[-1]
            assert asked.state == "waiting" and not asked.stopped
        while not asked.stopped and time.monotonic() < until:
            time.sleep(0.01)
        assert asked.stopped
    finally:
        gate.set()
    assert isinstance(asked.done.exception(30), Stopped)


def test_what_is_not_there_and_what_is_no_body_have_three_parts(ask) -> None:
    deep = {"content": b"[" * 200_000, "headers": {"content-type": "application/json"}}
    for method, path, status, more in (
        ("GET", "/api/nothing", 404, {}), ("DELETE", "/", 405, {}),
        ("POST", "/sdapi/v1/txt2img", 400, deep),
    ):  # fmt: skip
        answer = ask.request(method, path, **more)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert path in error["what"] and error["why"] and "/docs" in error["hint"]


def test_the_command_refuses_what_cannot_be(capsys) -> None:
    assert command.main(["--port", "70000"]) == 2
    assert command.main(["--queue", "0"]) == 2
    assert command.main(["--budget", "imagez=3"]) == 2
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_loading_a_model_leaves_no_workers_of_openmp() -> None:
    """With two threads each in two places, a picture on two cores waited 2700 times asleep."""
    count = "len(os.listdir('/proc/self/task'))"
    script = f"""
import os, torch
from sdcore.app.serve.command import make_app, make_parser
before = {count}
make_app(make_parser().parse_args([]), None)
print({count} - before)
torch.ones(1 << 22).sin()
print({count} - before)
"""
    here = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], env=here, capture_output=True, text=True)
    alone, with_workers = map(int, done.stdout.split())
    assert alone == 1, "the painter"
    assert with_workers > alone, "so they are seen"
