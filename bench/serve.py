"""What the server costs, and whether it keeps its word under load.

    python -m bench.serve                         16 clients, 100 requests each
    python -m bench.serve --clients 4 --requests 5 --rounds 5

`draft` and `picture of a changed word`: the time from a request that changes a word and keeps the
rest, as the page sends it, to its draft, and to its picture of 25 steps. `overhead`: the time of a
request of OpenAI's kind to a server with the embedded model, less that of the same job in this
process, in turn; median and range. `load`: clients that ask at once, in all three interfaces, for a
few jobs; `wrong` counts pictures whose pixels are not those of the job in this process. The
server's resident memory is read before, in the middle and after.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
from PIL import Image

from bench.command import make_parser
from sdcore import Job, TextToImage, job_to_dict
from sdcore.errors import exit_on_error

STEPS = 4
KINDS = ("native", "openai", "web ui")


def make_jobs(count: int) -> list[Job]:
    """A few jobs that differ."""
    things = ("a red fox", "a blue apple", "a cat on grass", "a yellow rocket")
    return [
        Job(f"{things[i % len(things)]} in flat style", seed=i, steps=STEPS, guidance_scale=2.0)
        for i in range(count)
    ]


@contextmanager
def server() -> Generator[tuple[str, int]]:
    """A server's address and process; it ends with the block."""
    command = [sys.executable, "-m", "sdcore", "serve", "--port", "0", "--queue", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait(30)


def ask(client: httpx.Client, kind: str, job: Job) -> str:
    """The picture in base64."""
    said = {"prompt": job.prompt, "seed": job.seed, "steps": job.steps}
    if kind == "native":
        text = client.post("/api/paint", json={"job": job_to_dict(job)}).text
        last = text.rstrip().rpartition("\ndata: ")[2]
        return json.loads(last)["png"]
    if kind == "openai":
        body = {**said, "guidance_scale": job.guidance_scale}
        return client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
    body = {**said, "cfg_scale": job.guidance_scale, "width": 64, "height": 64}
    return client.post("/sdapi/v1/txt2img", json=body).json()["images"][0]


def pixels(png: str) -> str:
    """SHA-256 of its pixels."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def memory(process: int) -> float:
    """Resident MiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def overhead(pipe: TextToImage, client: httpx.Client, rounds: int) -> list[float]:
    """Milliseconds of each round that the server takes more."""
    (job,) = make_jobs(1)
    found: list[float] = []
    for turn in range(rounds + 1):
        begun = time.perf_counter()
        pipe.paint(job)
        middle = time.perf_counter()
        ask(client, "openai", job)
        if turn:  # the first one warms up
            found.append(1000 * ((time.perf_counter() - middle) - (middle - begun)))
    return found


def changed(client: httpx.Client, rounds: int) -> list[tuple[float, float]]:
    """Seconds until the draft, and until the picture, of a prompt in which a word is changed."""
    prompts = [f"a {thing} to the left of a cat in flat style" for thing in ("fox", "dog", "pig")]
    found: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        job = {"prompt": prompts[0], "seed": 3}
        body = {"job": job, "edit": {"to": prompts[1 + turn % 2]}, "heatmaps": True, "draft": True}
        came: dict[str, float] = {}
        begun = time.perf_counter()
        with client.stream("POST", "/api/paint", json=body) as answer:
            for line in answer.iter_lines():
                came.setdefault(line, time.perf_counter() - begun)
        if turn:  # the first one warms up
            found.append((came["event: draft"], came["event: picture"]))
    return found


def load(
    pipe: TextToImage, client: httpx.Client, process: int, clients: int, requests: int
) -> dict[str, float]:
    """How many pictures were wrong, and the memory in MiB."""
    jobs = make_jobs(8)
    # The web UI's defaults are others: its pictures are compared with those that came one by one.
    right = {
        (kind, job.seed): hashlib.sha256(pipe.paint(job).images[0].tobytes()).hexdigest()
        for job in jobs
        for kind in KINDS[:2]
    }
    right |= {("web ui", job.seed): pixels(ask(client, "web ui", job)) for job in jobs}
    kept = [memory(process)]

    def run(number: int) -> int:
        wrong = 0
        for turn in range(requests):
            kind, job = KINDS[(number + turn) % 3], jobs[(number * 5 + turn) % len(jobs)]
            wrong += pixels(ask(client, kind, job)) != right[kind, job.seed]
            if number == 0 and turn == requests // 2:
                kept.append(memory(process))
        return wrong

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        wrong = sum(pool.map(run, range(clients)))
    spent = time.perf_counter() - begun
    kept.append(memory(process))
    names = ("MiB before", "MiB in the middle", "MiB after")
    return {
        "requests": clients * requests,
        "wrong": wrong,
        "requests a second": round(clients * requests / spent, 2),
        **dict(zip(names, (round(each, 1) for each in kept), strict=True)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=20)
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="at once")
    parser.add_argument("--requests", type=int, default=100, metavar="N", help="of each client")
    options = parser.parse_args(arguments)
    pipe = TextToImage.embedded().with_convolution("auto")
    limits = httpx.Limits(max_connections=options.clients + 1)
    with (
        server() as (url, process),
        httpx.Client(base_url=url, timeout=3600, trust_env=False, limits=limits) as client,
    ):
        times = zip(*changed(client, options.rounds), strict=True)
        for name, seconds in zip(("draft", "picture"), times, strict=True):
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(f"{name} of a changed word: {median(seconds):.2f} s, {spread}")
        more = overhead(pipe, client, options.rounds)
        print(f"overhead: {median(more):.1f} ms, {min(more):.1f} to {max(more):.1f}")
        for name, value in load(pipe, client, process, options.clients, options.requests).items():
            print(f"{name}: {value:g}")


if __name__ == "__main__":
    with exit_on_error():
        main()
