"""Names of samplers: as people type them, and as Stable Diffusion web UI and ComfyUI record them.

Every name comes from the tables `METHODS` and `SCHEDULES`. Whether a name of another tool is the
same as one of ours is judged by the noise levels that it visits: see `tests/diffusion/test_levels`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from sdcore.checks import shown
from sdcore.diffusion.levels import SCHEDULES, SPACINGS
from sdcore.diffusion.methods import METHODS, NONE, STOCHASTIC, Method
from sdcore.errors import UsageError

_LEVELS = (*SCHEDULES, *SPACINGS)
# What people type for a schedule -> ours; `automatic` is a method's own in the web UI.
_SCHEDULE_ALIASES = {
    **{name: name for name in _LEVELS},
    "uniform": "normal",
    "ddim": "ddim uniform",  # the web UI's schedule type
    "k": "karras",  # InvokeAI
    "ka": "karras",  # the web UI's older short names
    "polyexponential": "exponential",  # with its exponent 1, which all tools use
    "sgmuniform": "sgm uniform",
    "ays": "align your steps",
    "ays sd1": "align your steps",
    "ays sdxl": "align your steps",
    "automatic": "automatic",
}
_WEB_UI_SCHEDULES = {
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "SGM Uniform": "sgm uniform",
    "Simple": "simple",
    "DDIM": "ddim uniform",
    "Beta": "beta a1111",
    "Align Your Steps": "align your steps a1111",
}
_WEB_UI_READ = {
    **{theirs.lower(): ours for theirs, ours in _WEB_UI_SCHEDULES.items()},
    "polyexponential": "exponential",
    "normal": "normal",
    "kl optimal": "kl optimal",
}
_COMFY_SCHEDULES = {
    name.replace(" ", "_"): name
    for name in (
        *("normal", "karras", "exponential", "sgm uniform", "simple", "ddim uniform", "beta"),
        *("linear quadratic", "kl optimal"),
    )
} | {"ays sd1": "align your steps", "ays sdxl": "align your steps"}  # of extensions
_OURS = " (sdcore)"  # behind a schedule that the web UI does not have
# Samplers that are not here -> the nearest that is, and why.
_ADAPTIVE = "it decides how many steps it takes as it goes"
_LACKING = "no scheduler of diffusers computes it"
# Of RES4LYF, an extension of ComfyUI: behind the name so many stages, or steps that it remembers.
_STAGES = re.compile(r"[1-9][0-9]?([sm])")
_RES4LYF = "it is of ComfyUI's extension RES4LYF, and no scheduler of diffusers computes it"
_NEAREST_OF = {"s": "dpm++ 2s", "m": "dpm++ 2m"}
NOT_HERE: dict[str, tuple[str, str]] = {
    "rk beta": ("heun", _RES4LYF),
    "dpm fast": ("dpm++ 2s", "it chooses its own noise levels, in groups of three calls"),
    "dpm adaptive": ("dpm++ 2m", _ADAPTIVE),
    "restart": ("heun", "it goes back to noisier levels, and times only fall here"),
    "heunpp2": ("heun", _LACKING),
    "heun++": ("heun", _LACKING),
    "exp heun 2 x0": ("heun", _LACKING),
    "exp heun 2 x0 sde": ("dpm++ sde", _LACKING),
    "dpm++ 2s a cfg++": ("dpm++ 2s a", _LACKING),
    "dpm++ 2m cfg++": ("dpm++ 2m", _LACKING),
    "ipndm v": ("ipndm", _LACKING),
    "res multistep": ("dpm++ 2m", _LACKING),
    "res multistep cfg++": ("dpm++ 2m", _LACKING),
    "res multistep a": ("dpm++ 2m sde", _LACKING),
    "res multistep a cfg++": ("dpm++ 2m sde", _LACKING),
    "gradient estimation": ("euler", _LACKING),
    "gradient estimation cfg++": ("euler cfg++", _LACKING),
    "er sde": ("dpm++ 3m sde", _LACKING),
    "seeds 2": ("dpm++ sde", _LACKING),
    "seeds 3": ("dpm++ 3m sde", _LACKING),
    "sa solver pece": ("sa-solver", _LACKING),
}
# What is not the same though the method is, by the names there.
_WEB_UI_METHODS = {
    "ddim": "it leaves out the last of its steps there",
    "ddim cfg++": "it leaves out the last of its steps there",
    "pndm": "it visits other times there where 1000 is no multiple of the steps",
    "unipc": "it is of the third order there, with coefficients and times of its own",
    "dpm++ 3m sde": "it leaves out the level before its last there",
    "lcm": "its times are others there",
}
_COMFY_METHODS = {
    "unipc": "it is of the third order there, and ends at 0.001",
    "unipc bh1": "it is of the third order there, and ends at 0.001",
    "deis": "it is of the third order there, and goes on to level 0",
    "sa-solver": "it goes on to level 0 there",
}
# The web UI gives these no noise levels but times: every so-manieth training step.
_OVER_TIMES = {"ddim": "ddim uniform", "ddim cfg++": "ddim uniform", "pndm": "leading", "unipc": ""}
_FALLBACK = "dpm++ 2m"
_DPM_ORDER = re.compile(r"dpm\+\+(?=[23]|sde)")  # "DPM++2M"
_MOST_WORDS = 20  # of a sampler's name; pictures from anywhere say it


@dataclass(frozen=True)
class Found:
    """Our sampler's name, and why it is not the same, one reason each."""

    name: str
    differences: tuple[str, ...]


def split_name(name: str) -> tuple[str, str]:
    """A canonical name's method and its schedule, "" where it names none."""
    for method in sorted(METHODS, key=len, reverse=True):
        schedule = name.removeprefix(method).removeprefix(" ")
        if name in (method, f"{method} {schedule}") and schedule in ("", *_LEVELS):
            return method, schedule
    raise KeyError(name)


def canonical_name(name: str) -> str:
    """The method, with a schedule where one is named, for any usual spelling.

    "DPM++ 2M Karras", "dpmpp_2m_karras", "dpmpp_2m_k" and "k_dpmpp_2m_ka" are "dpm++ 2m karras".

    Raises:
        UsageError: with the names that there are and the nearest one; or the method cannot take
            that schedule.
    """
    key = _key(name if isinstance(name, str) else "")
    method, schedule = _METHOD_KEYS.get(key), ""
    words = key.split(" ")
    for cut in range(1, len(words) if len(words) <= _MOST_WORDS else 0):
        if method is None and " ".join(words[cut:]) in _SCHEDULE_ALIASES:
            method = _METHOD_KEYS.get(" ".join(words[:cut]))
            schedule = _SCHEDULE_ALIASES[" ".join(words[cut:])]
    if method is None:
        raise _unknown(name, key)
    if schedule == "automatic":
        schedule = METHODS[method].automatic
    if not takes_schedule(METHODS[method], schedule):
        raise UsageError(
            f"Scheduler {method!r} has no noise levels {schedule!r}.",
            f"It runs over {' or '.join(METHODS[method].spacings) or 'times of its own'} alone."
            if METHODS[method].takes == NONE
            else "Its class in diffusers spreads the steps in its own way.",
            f"Use {method!r} alone, or another method with these levels.",
        )
    return _joined(method, schedule)


def takes_schedule(method: Method, schedule: str) -> bool:
    """Whether a method can visit the levels of a schedule."""
    if schedule in SPACINGS:
        return schedule in method.spacings
    return not schedule or method.takes != NONE


def steadier_name(name: str) -> str:
    """The same method, so that even a run of few steps begins at the largest noise level."""
    method = split_name(name)[0]
    rules = ("sgm uniform", "trailing")
    return next(f"{method} {rule}" for rule in rules if takes_schedule(METHODS[method], rule))


def to_web_ui(name: str, levels: str | None = None) -> tuple[str, str]:
    """(Sampler, Schedule type) for one of our names.

    Args:
        levels: the schedule whose noise levels the run visited, where the name does not say it.
    """
    if name not in METHODS and not any(name.startswith(f"{method} ") for method in METHODS):
        return name, levels or ""
    method, schedule = split_name(name)
    shown = {ours: theirs for theirs, ours in _WEB_UI_SCHEDULES.items()}
    schedule = schedule or levels or "model's own"
    if method in _WEB_UI_METHODS:
        shown = {}  # of these it takes no levels, or others than the schedule's
    return METHODS[method].web_ui or method, shown.get(schedule, schedule + _OURS)


def from_web_ui(sampler: str, schedule: str | None) -> Found:
    """Ours for the web UI's `Sampler` and `Schedule type`.

    Before version 1.9 the solver's name ended in the noise levels ("DPM++ 2M Karras") and there was
    no schedule type; without either the levels were uniform.
    """
    solver, levels = sampler.strip(), schedule
    for ending in (" Karras", " Exponential"):
        if solver.endswith(ending):
            solver, levels = solver.removesuffix(ending), ending.strip()
    method, differences = _method(sampler, _key(solver))
    levels = (levels or "Uniform").strip()
    if levels.endswith(_OURS):
        ours = levels.removesuffix(_OURS)
        return Found(_joined(method, ours if ours in _LEVELS else ""), tuple(differences))
    if levels.lower() == "automatic":
        levels = METHODS[method].automatic
    levels = levels.lower().replace("_", " ")
    found = _WEB_UI_READ.get(levels, levels)
    found = _OVER_TIMES.get(method, found)
    if method in _WEB_UI_METHODS:
        differences.append(f"{method!r}: {_WEB_UI_METHODS[method]}")
    if found == "kl optimal":
        differences.append("noise levels 'KL Optimal' end at the least one there, not at 0")
    return _with_levels(method, found, differences)


def from_comfy(sampler: str, schedule: str) -> Found:
    """Ours for ComfyUI's `sampler_name` and `scheduler`."""
    key = sampler.strip().lower()
    method = "euler" if key == "ddim" else _COMFY.get(key)  # ComfyUI's ddim is its euler
    differences: list[str] = []
    if method is None:
        method, differences = _method(sampler, _key(key))
    if method in _COMFY_METHODS:
        differences.append(f"{sampler!r:.60}: {_COMFY_METHODS[method]}")
    levels = schedule.strip().lower()
    return _with_levels(method, _COMFY_SCHEDULES.get(levels, levels), differences)


def _with_levels(method: str, levels: str, differences: list[str]) -> Found:
    if levels and (levels not in _LEVELS or not takes_schedule(METHODS[method], levels)):
        differences.append(f"noise levels {levels!r:.60} are not there for {method!r}")
        levels = ""
    if method in STOCHASTIC:
        differences.append(f"{method!r} adds noise in every step, which is drawn differently here")
    return Found(_joined(method, levels), tuple(differences))


def _method(theirs: str, key: str) -> tuple[str, list[str]]:
    """Our method, or the nearest and why it is not the same."""
    if key in _METHOD_KEYS:
        return _METHOD_KEYS[key], []
    near, why, _ = _nearest(key) or (_FALLBACK, "", [])
    why = f" ({why})" if why else ""
    return near, [f"sampler {theirs!r:.60} is not there{why}; {near!r} is used"]


def _nearest(key: str) -> tuple[str, str, list[str]] | None:
    """The method nearest to an unknown name, why it is not the same, and what stands behind it.

    By the words that the name begins with ("euler smea dy"), and by those of RES4LYF.
    """
    words = key.split(" ")[:_MOST_WORDS]
    starts = [" ".join(words[:count]) for count in range(len(words), 0, -1)]
    known = next((start for start in starts if start in NOT_HERE or start in _METHOD_KEYS), "")
    found = NOT_HERE.get(known) or ((_METHOD_KEYS[known], "") if known else None)
    rest = words[len(known.split()) or 1 :]
    stages = next((match for word in rest if (match := _STAGES.fullmatch(word))), None)
    if stages is not None:
        return (found[0] if found else _NEAREST_OF[stages[1]]), _RES4LYF, rest
    return None if found is None else (found[0], found[1], rest)


def _joined(method: str, schedule: str) -> str:
    return f"{method} {schedule}".strip()


def _key(name: str) -> str:
    """A name without what differs between spellings of it."""
    plain = name.lower().replace("_", " ").replace("-", " ").replace("dpmpp", "dpm++")
    words = _DPM_ORDER.sub("dpm++ ", plain).split()
    plain = " ".join(words).removesuffix(" gpu").removeprefix("sample ").removeprefix("k ")
    for theirs, ours in (("ancestral", "a"), ("dpm 2", "dpm2"), ("cfg pp", "cfg++")):
        plain = plain.replace(theirs, ours)
    return plain.replace("cfgpp", "cfg++")


def _unknown(name: str, key: str) -> UsageError:
    nearest = _nearest(key)
    if nearest is not None:
        near, why, rest = nearest
        why = why or f"{near!r} is, but nothing known is meant by what stands behind it"
        known = f" Noise levels behind a method's name are: {', '.join(_LEVELS)}." if rest else ""
        return UsageError(
            f"Scheduler {shown(name)} is not there.",
            f"{why[0].upper()}{why[1:]}.{known}",
            _hint_of(near, rest),
        )
    known = [*_METHOD_KEYS, *(f"{method} karras" for method in METHODS)]
    near_names = get_close_matches(key, known, n=1, cutoff=0.5)
    return UsageError(
        f"Unknown scheduler {shown(name)}.",
        f"The methods are: {', '.join(METHODS)}. Behind one may stand its noise levels: "
        f"{', '.join(_LEVELS)}.",
        f"Did you mean {near_names[0]!r}?" if near_names else "Use one of these names.",
    )


def _hint_of(near: str, rest: list[str]) -> str:
    """What to use in place of an unknown name, with levels that are spelt nearly as its end."""
    ends = (" ".join(rest[count:]) for count in range(len(rest)))
    levels = (get_close_matches(end, _SCHEDULE_ALIASES, n=1, cutoff=0.75) for end in ends)
    found = next((_SCHEDULE_ALIASES[each[0]] for each in levels if each), "")
    takes = found and found != "automatic" and takes_schedule(METHODS[near], found)
    return f"Use {_joined(near, found if takes else '')!r}, the nearest that is."


def _method_keys() -> dict[str, str]:
    """Every spelling of every method; of a class that makes several, the first has its name."""
    keys: dict[str, str] = {}
    for name, method in METHODS.items():
        edm = method.edm.partition(".")[2] if method.edm else ""
        for spelling in (name, method.web_ui, *method.comfy, *method.aliases, method.cls, edm):
            if spelling:
                keys.setdefault(_key(spelling), name)
    return keys


_METHOD_KEYS = _method_keys()
_COMFY = {theirs: name for name, method in METHODS.items() for theirs in method.comfy}
