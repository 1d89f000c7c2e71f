"""The table of samplers: methods, which of a run's noise levels they take, and who they are.

A sampler is a method and a schedule of noise levels (`sdcore.diffusion.levels`); what the UNet
predicts is the model's. Its name is the method's, alone where the model's own settings spread the
steps, or with a schedule behind it: "euler", "euler karras", "dpm++ 2m sgm uniform".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from sdcore.diffusion.levels import SPACINGS

# How a method takes the levels of a schedule.
LEVELS, TIMES, NONE = "levels", "times", "none"


@dataclass(frozen=True)
class Method:
    """A way to go from one noise level to the next.

    Attributes:
        module, cls: of the scheduler, in diffusers.schedulers or here.
        settings: of that class, which make it this method.
        noise: it adds noise in its steps.
        takes: LEVELS, any noise levels; TIMES, whole training steps; NONE, only equal distances.
        spacings: of diffusers' rules for spreading the steps, those that its class follows.
        over_times: the class that takes TIMES, where it is another.
        ends_trained: the last level is the least trained one; its formula divides by zero at 0.
        skips_last: a schedule's last level but one is left out, as the tools that made it do.
        edm: the class for models trained with EDM noise; None where it cannot run them.
        web_ui: its name in Stable Diffusion web UI.
        automatic: the schedule that the web UI's "Automatic" stands for since version 1.9.
        comfy: its names in ComfyUI.
        aliases: what people call it besides, in InvokeAI and elsewhere.
    """

    module: str
    cls: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    noise: bool = False
    takes: str = LEVELS
    spacings: tuple[str, ...] = SPACINGS
    over_times: tuple[str, str] | None = None
    ends_trained: bool = False
    skips_last: bool = False
    edm: str | None = None
    web_ui: str | None = None
    automatic: str = "normal"
    comfy: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether it is written here."""
        return self.module.startswith("sdcore.")

    def load_class(self, over_times: bool = False) -> Any:
        """The class of its scheduler; `over_times` is the one for any TIMES."""
        home, name = self.module, self.cls
        if over_times and self.over_times:
            home, name = self.over_times
        home = home if home.startswith("sdcore.") else f"diffusers.schedulers.{home}"
        return getattr(import_module(home), name)

    def load_edm_class(self) -> Any:
        """The class of its scheduler for models trained with EDM noise."""
        assert self.edm is not None
        home, _, name = self.edm.partition(".")
        return getattr(import_module(f"diffusers.schedulers.{home}"), name)


_MULTISTEP = ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler")
_UNIPC = ("scheduling_unipc_multistep", "UniPCMultistepScheduler")
_OWN, _DDIM = "sdcore.diffusion.solvers", "sdcore.diffusion.ddim"
_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
_EDM_MULTISTEP = "scheduling_edm_dpmsolver_multistep.EDMDPMSolverMultistepScheduler"

METHODS = {
    "ddim": Method(
        *("scheduling_ddim", "DDIMScheduler"),
        takes=TIMES,
        over_times=(_DDIM, "DDIMTimesScheduler"),
        web_ui="DDIM",
        comfy=("ddim",),
        aliases=("DDIMParallelScheduler",),
    ),
    "ddim cfg++": Method(
        *(_DDIM, "DDIMCFGPlusPlusScheduler"),
        takes=TIMES,
        web_ui="DDIM CFG++",
        aliases=("ddim_cfgpp",),
    ),
    "ddpm": Method(
        *("scheduling_ddpm", "DDPMScheduler"),
        noise=True,
        takes=TIMES,
        comfy=("ddpm",),
        aliases=("DDPMParallelScheduler",),
    ),
    # The Runge-Kutta warm-up of PNDM is always skipped for Stable Diffusion ("PLMS").
    "pndm": Method(
        *("scheduling_pndm", "PNDMScheduler", {"skip_prk_steps": True}),
        takes=NONE,
        web_ui="PLMS",
        aliases=("plms",),
    ),
    "euler": Method(
        *("scheduling_euler_discrete", "EulerDiscreteScheduler"),
        edm="scheduling_edm_euler.EDMEulerScheduler",
        web_ui="Euler",
        comfy=("euler",),
    ),
    "euler a": Method(
        *("scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
        noise=True,
        web_ui="Euler a",
        comfy=("euler_ancestral",),
    ),
    "euler cfg++": Method(
        *(_OWN, "EulerCFGPlusPlusScheduler"), comfy=("euler_cfg_pp",), aliases=("euler_cfgpp",)
    ),
    "euler a cfg++": Method(
        *(_OWN, "EulerAncestralCFGPlusPlusScheduler"),
        noise=True,
        comfy=("euler_ancestral_cfg_pp",),
    ),
    "heun": Method(
        *("scheduling_heun_discrete", "HeunDiscreteScheduler"), web_ui="Heun", comfy=("heun",)
    ),
    "dpm2": Method(
        *("scheduling_k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
        skips_last=True,
        web_ui="DPM2",
        automatic="karras",
        comfy=("dpm_2",),
        aliases=("kdpm_2", "kdpm2"),
    ),
    "dpm2 a": Method(
        *("scheduling_k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
        noise=True,
        skips_last=True,
        web_ui="DPM2 a",
        automatic="karras",
        comfy=("dpm_2_ancestral",),
        aliases=("kdpm_2_a", "kdpm2_a"),
    ),
    "dpm++ 2s": Method(
        *("scheduling_dpmsolver_singlestep", "DPMSolverSinglestepScheduler"),
        spacings=("linspace",),
    ),
    "dpm++ 2s a": Method(
        *(_OWN, "DPMSolverPlusPlus2SAncestralScheduler"),
        noise=True,
        web_ui="DPM++ 2S a",
        automatic="karras",
        comfy=("dpmpp_2s_ancestral",),
    ),
    "dpm++ 2m": Method(
        *_MULTISTEP, edm=_EDM_MULTISTEP, web_ui="DPM++ 2M", automatic="karras", comfy=("dpmpp_2m",)
    ),
    "dpm++ 2m sde": Method(
        *_MULTISTEP,
        _SDE,
        noise=True,
        edm=_EDM_MULTISTEP,
        web_ui="DPM++ 2M SDE",
        automatic="exponential",
        comfy=("dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    ),
    "dpm++ 2m sde heun": Method(
        *_MULTISTEP,
        {**_SDE, "solver_type": "heun"},
        noise=True,
        edm=_EDM_MULTISTEP,
        web_ui="DPM++ 2M SDE Heun",
        automatic="exponential",
        comfy=("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu"),
    ),
    "dpm++ 3m": Method(*_MULTISTEP, {"solver_order": 3}, edm=_EDM_MULTISTEP),
    "dpm++ 3m sde": Method(
        *(_OWN, "DPMSolverPlusPlus3MSDEScheduler"),
        noise=True,
        web_ui="DPM++ 3M SDE",
        automatic="exponential",
        comfy=("dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
    ),
    "dpm++ sde": Method(
        *(_OWN, "DPMSolverPlusPlusSDEScheduler"),
        noise=True,
        web_ui="DPM++ SDE",
        automatic="karras",
        comfy=("dpmpp_sde", "dpmpp_sde_gpu"),
        aliases=("DPMSolverSDEScheduler",),
    ),
    "lms": Method(
        *(_OWN, "LMSScheduler"), web_ui="LMS", comfy=("lms",), aliases=("LMSDiscreteScheduler",)
    ),
    "ipndm": Method(*(_OWN, "IPNDMScheduler"), comfy=("ipndm",)),
    "deis": Method(
        *("scheduling_deis_multistep", "DEISMultistepScheduler"),
        ends_trained=True,
        comfy=("deis",),
    ),
    "unipc": Method(*_UNIPC, web_ui="UniPC", comfy=("uni_pc_bh2",)),
    "unipc bh1": Method(
        *_UNIPC,
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        ends_trained=True,
        comfy=("uni_pc",),
    ),
    "sa-solver": Method(
        *("scheduling_sasolver", "SASolverScheduler"),
        noise=True,
        ends_trained=True,
        comfy=("sa_solver",),
        aliases=("sasolver",),
    ),
    "lcm": Method(
        *("scheduling_lcm", "LCMScheduler"),
        noise=True,
        takes=TIMES,
        spacings=(),
        web_ui="LCM",
        comfy=("lcm",),
    ),
    "tcd": Method(*("scheduling_tcd", "TCDScheduler"), noise=True, takes=TIMES, spacings=()),
}
STOCHASTIC = frozenset(name for name, method in METHODS.items() if method.noise)
