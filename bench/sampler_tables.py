"""The tables of docs/samplers.md, out of the code: which sampler every tool's name is here.

python -m bench.sampler_tables            # write them into the page
python -m bench.sampler_tables --check    # say whether they are there
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from sdcore.diffusion.levels import SCHEDULES, SPACINGS
from sdcore.diffusion.methods import LEVELS, METHODS, NONE
from sdcore.diffusion.sampler_names import (
    NOT_HERE,
    canonical_name,
    from_comfy,
    from_web_ui,
    split_name,
)
from sdcore.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "samplers.md"
WEB_UI = (
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE"),
    *("Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart"),
    *("DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM"),
)
WEB_UI_TYPES = (
    *("Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform"),
    *("KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta"),
)
WEB_UI_COMBINED = (
    *("DPM++ 2M Karras", "DPM++ SDE Karras", "DPM++ 2M SDE Exponential", "DPM++ 2M SDE Karras"),
    *("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun Exponential", "DPM++ 3M SDE Karras"),
    *("DPM++ 3M SDE Exponential", "DPM++ 2S a Karras", "LMS Karras", "DPM2 Karras"),
    "DPM2 a Karras",
)
COMFY = (
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2"),
    *("exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast"),
    *("dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde"),
    *("dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    *("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm"),
    *("lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp"),
    *("res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "gradient_estimation"),
    *("gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver"),
    *("sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2"),
)
COMFY_SCHEDULERS = (
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal"),
    *("linear_quadratic", "kl_optimal"),
)
INVOKE = (
    *("ddim", "ddpm", "deis", "deis_k", "lms", "lms_k", "pndm", "heun", "heun_k", "euler"),
    *("euler_k", "euler_a", "kdpm_2", "kdpm_2_k", "kdpm_2_a", "kdpm_2_a_k", "dpmpp_2s"),
    *("dpmpp_2s_k", "dpmpp_2m", "dpmpp_2m_k", "dpmpp_2m_sde", "dpmpp_2m_sde_k", "dpmpp_3m"),
    *("dpmpp_3m_k", "dpmpp_sde", "dpmpp_sde_k", "unipc", "unipc_k", "lcm", "tcd"),
)
_DRAWN = "which is drawn differently here"
_KINDS = "of another kind of model: flow matching, video, audio, pixels, or towards noise"


def methods_table() -> str:
    """Every method: its class, and which levels it takes."""
    takes = {LEVELS: "any schedule", NONE: "equal distances alone"}
    rows = [
        [
            f"`{name}`",
            f"`{method.cls}`" + (", written here" if method.own else ""),
            ", ".join(f"`{key}={value}`" for key, value in method.settings.items()),
            takes.get(method.takes, "any schedule, rounded to training steps"),
            "yes" if method.noise else "",
        ]
        for name, method in METHODS.items()
    ]
    return _table(["method", "class", "settings", "takes", "adds noise"], rows)


def schedules_table() -> str:
    """Every schedule, and what it is."""
    rows = [
        [f"`{name}`", " ".join((formula.__doc__ or "").split("\n\n")[0].split())]
        for name, formula in SCHEDULES.items()
    ]
    rows += [[f"`{name}`", "diffusers' `timestep_spacing` of that name"] for name in SPACINGS]
    return _table(["schedule", "levels"], rows)


def names_table() -> str:
    """Every name of the four worlds: as it is typed here, and what a picture's record means."""
    rows = [["web UI", name, *_typed(name), _web_ui(name)] for name in WEB_UI]
    rows += [["web UI, before 1.9", name, *_typed(name), ""] for name in WEB_UI_COMBINED]
    rows += [
        ["web UI, schedule type", name, *_schedule(f"Euler {name}"), _web_ui_type(name)]
        for name in WEB_UI_TYPES
    ]
    rows += [["ComfyUI", name, *_typed(name), _comfy(name)] for name in COMFY]
    rows += [
        ["ComfyUI, scheduler", name, *_schedule(f"euler {name}"), ""] for name in COMFY_SCHEDULERS
    ]
    rows += [["InvokeAI", name, *_typed(name), ""] for name in INVOKE]
    rows += [["diffusers", name, *_typed(name), ""] for name in _diffusers_classes()]
    rows += [["diffusers", "every other class", "not here", _KINDS, ""]]
    head = ["tool", "name", "method", "schedule", "a picture of that tool"]
    return _table(head, [[row[0], f"`{row[1]}`", *row[2:]] for row in rows])


def _diffusers_classes() -> list[str]:
    """The classes of diffusers that methods here are, whatever its version has besides."""
    found: set[str] = set()
    for method in METHODS.values():
        edm = (method.edm or "").partition(".")[2]
        found |= {name for name in (*method.aliases, edm) if name.endswith("Scheduler")}
        found |= set() if method.own else {method.cls}
    return sorted(found)


def _typed(name: str) -> list[str]:
    try:
        method, schedule = split_name(canonical_name(name))
    except UsageError as error:
        why = error.why[0].lower() + error.why[1:].rstrip(".")
        return [
            "not here",
            why if any(why == reason for _, reason in NOT_HERE.values()) else _KINDS,
        ]
    return [f"`{method}`", f"`{schedule}`" if schedule else "the model's"]


def _schedule(name: str) -> list[str]:
    return ["any", _typed(name)[1]]


def _web_ui(name: str) -> str:
    return _said(from_web_ui(name, "Uniform").differences)


def _web_ui_type(name: str) -> str:
    if name == "Automatic":
        return "the method's own there"
    found = from_web_ui("Euler", name)
    schedule = split_name(found.name)[1]
    return "; ".join(filter(None, [f"`{schedule}`", _said(found.differences)]))


def _comfy(name: str) -> str:
    found = from_comfy(name, "normal")
    method = split_name(found.name)[0]
    same = _typed(name)[0] in (f"`{method}`", "not here")
    return "; ".join(filter(None, ["" if same else f"`{method}`", _said(found.differences)]))


def _said(differences: tuple[str, ...]) -> str:
    """What is not the same, but for noise that is drawn otherwise."""
    shown = [why.partition(" (")[0] if "is not there" in why else why for why in differences]
    used = [why.rpartition("; ")[2] for why in differences if "is not there" in why]
    told = [why for why in shown if _DRAWN not in why and "is not there" not in why]
    return "; ".join(re.sub(r"'([a-zA-Z+0-9 _-]+)'", r"`\1`", why) for why in [*used, *told])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["|".join(f" {cell} " for cell in row) for row in [head, *rows]]
    lines = [f"|{line}|" for line in lines]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


TABLES = {"methods": methods_table, "schedules": schedules_table, "names": names_table}


def with_tables(text: str) -> str:
    """The page with each table between its marks as the code has it."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{table()}\n\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing (default: write)")
    check = parser.parse_args().check
    text = PAGE.read_text("utf-8")
    made = with_tables(text)
    if check and made != text:
        sys.exit(f"{PAGE.name} is not what the code says; run it without --check")
    if not check:
        PAGE.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
