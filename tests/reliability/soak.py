"""Many requests in one process from many threads: each picture as if it was painted alone."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from sdcore import Job, Reweight, Size, TextToImage, apply_loras, read_lora, read_tokens
from tests import tiny
from tests.reliability.watch import memory

DIALECTS = ("plain", "a1111", "comfy", "compel")
SCHEDULERS = ("ddim", "euler a", "dpm++ 2m karras", "unipc", "pndm")
SIZES = ((64, 64), (48, 64), (64, 32), (32, 32))
KINDS = 200  # different requests, each of which is painted alone first
WARM = 1000  # requests, after which memory is to stay as it is
PART = 100  # requests between two looks at the memory


class Requests:
    """Requests by number, of one tiny model with LoRAs and controls."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import save_file

        from tests.adapters.test_lora import whole_lora

        self.pipe = TextToImage.from_pretrained(tiny.write_sd(folder / "sd"))
        self.models = [self.pipe]
        for seed in (1, 2):
            save_file(whole_lora(self.pipe, seed), folder / f"{seed}.safetensors")
            lora = read_lora(folder / f"{seed}.safetensors")
            self.models.append(apply_loras(self.pipe, [(lora, 0.2)], merge=seed == 2))

    def paint(self, number: int) -> str:
        """The hash of a picture."""
        rng = random.Random(number)
        prompt = rng.choice(["a red fox", "a (red:1.3) fox on the tree", "a big cat, a small dog"])
        job = Job(
            prompt,
            seed=rng.randrange(9),
            steps=rng.choice([1, 2, 3]),
            size=Size(*rng.choice(SIZES)),
            scheduler=rng.choice(SCHEDULERS),
            dialect=rng.choice(DIALECTS),
            negative_prompt=rng.choice(["", "bad"]),
        )
        model = rng.choice(self.models)
        control = None
        if rng.random() < 0.3 and "red" in prompt:
            tokens = read_tokens([prompt], model.tokenizer, job.dialect)
            control = Reweight(tokens, {"red": 3.0})
        result = model.paint(job, control, progress=False)
        return hashlib.sha256(result.images[0].tobytes()).hexdigest()


def soak(count: int, threads: int) -> int:
    """Paint so many, and print what was found; 1 where something was not as it should be."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        requests = Requests(Path(name))
        kinds = min(KINDS, count)
        alone = [requests.paint(number) for number in range(kinds)]
        files = sorted(os.listdir(name))
        before = {thread.ident for thread in threading.enumerate()}
        open_before = len(os.listdir("/proc/self/fd"))
        wrong, used, start = 0, list[int](), time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, count, PART):
                numbers = range(first, min(count, first + PART))
                found = pool.map(lambda n: requests.paint(n % kinds) == alone[n % kinds], numbers)
                wrong += sum(not same for same in found)
                used.append(memory("VmRSS"))
                if sys.stderr.isatty() or not len(used) % 10:
                    done, mib = first + len(numbers), used[-1] >> 20
                    print(f"{done:,} of {count:,}: {wrong} differ, {mib} MiB", file=sys.stderr)
        took = time.monotonic() - start
        left = {thread.ident for thread in threading.enumerate()} - before
        handles = len(os.listdir("/proc/self/fd")) - open_before
        same_files = sorted(os.listdir(name)) == files
    later = used[min(WARM // PART, len(used)) - 1 :]
    print(
        f"{count:,} requests of {kinds} kinds in {threads} threads, {took:.0f} s: {wrong} pictures "
        f"differ; memory from {used[0] >> 20} to {used[-1] >> 20} MiB, after the first {WARM:,} "
        f"by {slope_of(later, PART):.0f} bytes a request ({later[0] >> 20} to {later[-1] >> 20} "
        f"MiB); {len(left)} threads, {handles} open files and "
        f"{'no' if same_files else 'SOME'} files left"
    )
    return int(bool(wrong or left or handles > 0 or not same_files))


def slope_of(used: list[int], part: int) -> float:
    """Bytes a request, by least squares."""
    if len(used) < 2:
        return 0.0
    places = [place * part for place in range(len(used))]
    middle, mean = sum(places) / len(places), sum(used) / len(used)
    over = sum((x - middle) * (y - mean) for x, y in zip(places, used, strict=True))
    return over / sum((x - middle) ** 2 for x in places)


if __name__ == "__main__":
    sys.exit(soak(int(sys.argv[1]), 16))
