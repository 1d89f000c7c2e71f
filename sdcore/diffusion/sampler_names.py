"""Samplers as Stable Diffusion web UI and ComfyUI name them, and ours that come nearest.

Both of those tools name a solver and a rule for the noise levels apart; our names say both. Where
the solver and the rule are known here, the name stands for the same method; the numbers may still
differ in the last digits, since diffusers rounds some times to whole training steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdcore.diffusion.schedulers import STOCHASTIC

KARRAS = "karras"

# Solver in the web UI -> (ours, the noise levels that "Automatic" stands for since version 1.9).
_WEB_UI = {
    "DPM++ 2M": ("dpm++ 2m", KARRAS),
    "DPM++ SDE": ("dpm++ sde", KARRAS),
    "DPM++ 2M SDE": ("dpm++ 2m sde", "exponential"),
    "Euler a": ("euler a", "uniform"),
    "Euler": ("euler", "uniform"),
    "Heun": ("heun", "uniform"),
    "DDIM": ("ddim", "uniform"),
    "PLMS": ("pndm", "uniform"),
    "UniPC": ("unipc", "uniform"),
    "LCM": ("lcm", "uniform"),
    "DDPM": ("ddpm", "uniform"),
}
_COMFY = {
    "euler": "euler",
    "euler_ancestral": "euler a",
    "heun": "heun",
    "dpmpp_2m": "dpm++ 2m",
    "dpmpp_sde": "dpm++ sde",
    "dpmpp_sde_gpu": "dpm++ sde",
    "dpmpp_2m_sde": "dpm++ 2m sde",
    "dpmpp_2m_sde_gpu": "dpm++ 2m sde",
    "ddim": "ddim",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "uni_pc": "unipc",
}
# Solvers that we lack -> the nearest that we have, by what they compute.
_NEAR = {
    "dpm++ 2s a": "dpm++ sde",
    "dpmpp 2s ancestral": "dpm++ sde",
    "dpm++ 2m sde heun": "dpm++ 2m sde",
    "dpm++ 3m sde": "dpm++ 2m sde",
    "dpmpp 3m sde": "dpm++ 2m sde",
    "dpmpp 3m sde gpu": "dpm++ 2m sde",
    "dpm2": "heun",
    "dpm 2": "heun",
    "dpm2 a": "euler a",
    "dpm 2 ancestral": "euler a",
    "heunpp2": "heun",
    "lms": "pndm",
    "ipndm": "pndm",
    "uni pc bh2": "unipc",
    "ddim cfg++": "ddim",
}
_WITH_KARRAS = ("euler", "dpm++ 2m", "dpm++ 2m sde", "dpm++ sde")
_FALLBACK = "dpm++ 2m"


@dataclass(frozen=True)
class Found:
    """Our scheduler's name, and why it is not the same, one reason each."""

    name: str
    differences: tuple[str, ...]


def to_web_ui(name: str) -> tuple[str, str]:
    """(Sampler, Schedule type) for one of our names."""
    solver, karras, _ = name.partition(f" {KARRAS}")
    shown = {ours: theirs for theirs, (ours, _) in _WEB_UI.items()}
    # Automatic would mean Karras for some solvers.
    return shown.get(solver, solver), "Karras" if karras else "Uniform"


def from_web_ui(sampler: str, schedule: str | None) -> Found:
    """Ours for the web UI's `Sampler` and `Schedule type`.

    Before version 1.9 the solver's name ended in the noise levels ("DPM++ 2M Karras") and there was
    no schedule type; without either the levels were uniform.
    """
    solver, levels = sampler.strip(), schedule
    for ending in (" Karras", " Exponential"):
        if solver.endswith(ending):
            solver, levels = solver.removesuffix(ending), ending.strip()
    ours, automatic = _WEB_UI.get(solver, (None, "uniform"))
    levels = (levels or "uniform").lower()
    return _found(sampler, ours, solver.lower(), automatic if levels == "automatic" else levels)


def from_comfy(sampler: str, schedule: str) -> Found:
    """Ours for ComfyUI's `sampler_name` and `scheduler`."""
    plain = sampler.lower().replace("_", " ")
    return _found(sampler, _COMFY.get(sampler.lower()), plain, schedule.lower())


def _found(theirs: str, ours: str | None, plain: str, levels: str) -> Found:
    differences: list[str] = []
    if ours is None:
        ours = _NEAR.get(plain, _FALLBACK)
        differences.append(f"sampler {theirs!r:.60} is not there; {ours!r} is used")
    karras = levels == KARRAS
    if karras and ours in _WITH_KARRAS:
        name = f"{ours} {KARRAS}"
    else:
        name = ours
        if levels not in ("uniform", "normal", "ddim_uniform"):
            differences.append(f"noise levels {levels!r:.60} are not there for {ours!r}")
        elif ours != "ddim":
            differences.append(
                f"noise levels {levels!r}: the model sets its own spacing of the steps"
            )
    if name in STOCHASTIC:
        differences.append(f"{name!r} adds noise in every step, which is drawn differently here")
    return Found(name, tuple(differences))
