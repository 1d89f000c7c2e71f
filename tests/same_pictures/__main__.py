"""Record what a source tree paints, and check that another one paints the same to the bit.

    python tests/same_pictures.py record --tree . --out runs/pictures.json
    python tests/same_pictures.py compare --tree . --with runs/pictures.json --only lora

A record holds for one machine and one version of torch: others round in other places. `--tree` says
whose sdcore/, sample/ and train/ are imported, whatever is installed. Everything runs in one
process and on one thread.

The cases are in painted.py (through Python) and scripted.py (through sample/); what they call of
sdcore, and under which names, is in calls.py alone.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

THREADS = 1
MOST_LINES = 12  # of a text's difference that are shown

Case = dict[str, dict[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    kinds = parser.add_subparsers(dest="action", required=True)
    for action, text in (("record", "write a record"), ("compare", "compare with a record")):
        sub = kinds.add_parser(action, help=text)
        text = "source tree that paints (default: this one)"
        sub.add_argument("--tree", type=Path, default=Path(__file__).parents[2], help=text)
        text = "only cases whose name holds this; may be given several times (default: all)"
        sub.add_argument("--only", action="append", default=[], metavar="TEXT", help=text)
        sub.add_argument("--times", action="store_true", help="print how long each case took")
        text = "folder for all pictures, to look at (default: they are not kept)"
        sub.add_argument("--keep", type=Path, metavar="FOLDER", help=text)
        if action == "record":
            sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="the record")
        else:
            text = "the record to compare with"
            sub.add_argument("--with", dest="record", type=Path, required=True, help=text)
    options = parser.parse_args()
    options.keep = options.keep and options.keep.resolve()
    known = None
    if options.action == "compare":
        known = json.loads(options.record.read_text("utf-8"))
    prepare(options.tree.resolve())
    if known is not None:
        return compare(options, known)
    return record(options)


def prepare(tree: Path) -> None:
    """Make this tree's packages the ones that are imported, and results repeatable."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(THREADS)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
        os.environ[name] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(tree))
    import torch

    import sdcore

    assert Path(sdcore.__file__).is_relative_to(tree), f"{sdcore.__file__} is not in {tree}"
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    import calls

    calls.TREE = tree


def about() -> dict[str, Any]:
    """What else the numbers depend on."""
    from importlib.metadata import version

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), cpu)
    packages = ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow")
    return {
        "machine": platform.machine(),
        "cpu": cpu,
        "threads": THREADS,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def run_cases(options: argparse.Namespace) -> tuple[dict[str, Case], dict[str, str]]:
    """Every chosen case, and the errors of those that failed."""
    import painted
    import scripted
    import torch
    from workbench import Bench, Notes

    cases = {**painted.CASES, **scripted.CASES}
    chosen = [n for n in cases if not options.only or any(text in n for text in options.only)]
    done: dict[str, Case] = {}
    failed: dict[str, str] = {}
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="same-pictures-") as folder:
        bench = Bench(Path(folder).resolve())
        os.chdir(bench.folder)
        try:
            for number, name in enumerate(chosen):
                began, notes = time.perf_counter(), Notes(bench, options.keep, name)
                torch.manual_seed(0)
                try:
                    cases[name](bench, notes)
                except Exception:
                    failed[name] = traceback.format_exc()
                    print(f"{name}: FAILED", file=sys.stderr)
                else:
                    done[name] = notes.entries
                if options.times:
                    took = time.perf_counter() - began
                    print(f"{took:6.2f} s  {number + 1}/{len(chosen)}  {name}", file=sys.stderr)
        finally:
            os.chdir(here)
    import sample

    for package in (sample, *(sys.modules[n] for n in ("train",) if n in sys.modules)):
        assert any(Path(p).is_relative_to(options.tree.resolve()) for p in package.__path__)
    return done, failed


def record(options: argparse.Namespace) -> int:
    out, began = options.out.resolve(), time.perf_counter()
    done, failed = run_cases(options)
    for name, error in failed.items():
        print(f"\n{name}\n{error}")
    if failed:
        print(f"{len(failed)} cases failed; nothing was recorded")
        return 1
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"about": about(), "cases": done}, indent=1) + "\n", "utf-8")
    print(f"{out}: {summary(done)}, {time.perf_counter() - began:.0f} s")
    return 0


def compare(options: argparse.Namespace, known: dict[str, Any]) -> int:
    """Print every difference; 1 where there is one."""
    began, now = time.perf_counter(), about()
    for name in sorted(known["about"].keys() | now.keys()):
        before, after = known["about"].get(name), now.get(name)
        if before != after:
            print(f"not comparable to the bit: {name} was {before}, is {after}")
    done, failed = run_cases(options)
    differing: Counter[str] = Counter()
    for name, error in failed.items():
        print(f"{name}: FAILED: {error.rstrip().splitlines()[-1]}\n{error}")
    for name, entries in done.items():
        if name not in known["cases"]:
            print(f"{name}: not in the record")
            differing["case"] += 1
            continue
        for line, kind in differences(known["cases"][name], entries):
            print(f"{name}: {line}")
            differing[kind] += 1
    for name in known["cases"] if not options.only else ():
        if name not in done and name not in failed:
            print(f"{name}: no longer there")
            differing["case"] += 1
    print(f"compared {summary(done)}, {time.perf_counter() - began:.0f} s")
    if differing or failed:
        counts = [f"{count} {kind}" for kind, count in sorted(differing.items())]
        print(f"DIFFERENT: {', '.join([*counts, *([f'{len(failed)} failed'] * bool(failed))])}")
        return 1
    print("all equal")
    return 0


def differences(before: Case, after: Case) -> list[tuple[str, str]]:
    """One line, or a few for a text, and the kind of what differs."""
    found = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            kind = (old or new or {})["kind"]
            found.append((f"{name} is {'new' if old is None else 'missing'}", kind))
        elif old["sha256"] != new["sha256"] and not _same_json(old, new):
            line = f"{name} differs"
            if "text" in old and "text" in new:
                lines = difflib.unified_diff(
                    old["text"].splitlines(), new["text"].splitlines(), lineterm="", n=0
                )
                line += "".join(f"\n    {x[:2000]}" for x in list(lines)[2 : 2 + MOST_LINES])
            found.append((line, new["kind"]))
    return found


def _same_json(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two texts are one JSON, whatever the order of its names."""
    try:
        return json.loads(old["text"]) == json.loads(new["text"])
    except (KeyError, ValueError):
        return False


def summary(cases: dict[str, Case]) -> str:
    kinds = Counter(entry["kind"] for case in cases.values() for entry in case.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{len(cases)} cases ({counts})"


if __name__ == "__main__":
    sys.exit(main())
