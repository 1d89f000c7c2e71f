"""Whether a file of jobs is painted as fast as the best batch in process.

    python -m bench.batch                         64 pictures of the embedded model in each way
    python -m bench.batch --pictures 1000 --sizes 8

For each batch size, in turn and `--rounds` times: the jobs with `pipe.paint`, which keeps pictures
in memory, and as `sdcore batch` paints them, which reads lines, writes PNGs that say how they were
made, flushes each to the disk, hashes it and notes it. Loading the model is left out. Pictures a
second, the best round of each; the last column compares with the best of all in process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.command import make_parser
from sdcore import Job, TextToImage
from sdcore.errors import exit_on_error

THINGS = ("a red fox", "a blue apple", "a cat on a tree", "a yellow rocket")


def make_jobs(count: int, steps: int) -> list[Job]:
    """Jobs that differ in prompt and seed."""
    return [
        Job(f"{THINGS[i % len(THINGS)]} in flat style", seed=i, steps=steps) for i in range(count)
    ]


def in_process(pipe: TextToImage, jobs: list[Job], size: int) -> float:
    """Pictures a second."""
    begun = time.perf_counter()
    for first in range(0, len(jobs), size):
        pipe.paint(jobs[first : first + size], progress=False)
    return len(jobs) / (time.perf_counter() - begun)


def as_a_file(jobs: list[Job], size: int) -> float:
    """Pictures a second, from the first batch that is written to the last."""
    with tempfile.TemporaryDirectory() as folder:
        lines, out = Path(folder) / "jobs.jsonl", Path(folder) / "out"
        said = [{"prompt": job.prompt, "seed": job.seed, "steps": job.steps} for job in jobs]
        lines.write_text("\n".join(map(json.dumps, said)))
        command = [sys.executable, "-m", "sdcore", "batch", str(lines), "--output", str(out)]
        command += ["--batch-size", str(size)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet) as process:
            assert process.stdout is not None
            written = [time.perf_counter() for _ in process.stdout]  # each names a picture
    assert len(written) == len(jobs)
    return (len(jobs) - size) / (written[-1] - written[size - 1])


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=2, steps=25)
    parser.add_argument("--pictures", type=int, default=64, metavar="N", help="of each way")
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="of batches")
    options = parser.parse_args(arguments)
    jobs = make_jobs(options.pictures, options.steps)
    pipe = TextToImage.embedded().with_convolution("auto")
    pipe.paint(jobs[0], progress=False)  # the first one warms up
    found: dict[int, tuple[float, float]] = {}
    for _ in range(options.rounds):
        for size in options.sizes:
            alone, of_file = in_process(pipe, jobs, size), as_a_file(jobs, size)
            before = found.get(size, (0.0, 0.0))
            found[size] = max(before[0], alone), max(before[1], of_file)
            print(f"batches of {size}: {alone:.3f} in process, {of_file:.3f} as a file", flush=True)
    best = max(alone for alone, _ in found.values())
    print("| batch size | in process | as a file | of the best |\n|---|---|---|---|")
    for size, (alone, of_file) in found.items():
        print(f"| {size} | {alone:.3f} | {of_file:.3f} | {of_file / best:.3f} |")


if __name__ == "__main__":
    with exit_on_error():
        main()
