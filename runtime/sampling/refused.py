"""Samplers and schedules of other tools that aren't done here, by their names there, each with why. Pure values.

Of diffusers it is every scheduler that no sampler of ours does the work of.
"""

from __future__ import annotations

_BACKWARDS = "it goes from a picture to noise, which Tintype has no use for: tintype edit begins with a picture"
_FLOW = "it is for models that were trained by flow matching, which Tintype doesn't draw: take euler, heun or lcm"
_EDM = "it is for models of other noise than Stable Diffusion's (EDM, variance exploding): take euler, heun or dpmpp_2m"
_DISTILLED = "it is for one consistency or distilled model alone, which Tintype doesn't draw: take lcm or tcd"
_TOKENS = "it fills in tokens, and the models that Tintype draws have latents: take euler"
_OF_ONE_MODEL = "it belongs to one model alone, which Tintype doesn't draw: take ddpm, ddim or euler"

REFUSED_SAMPLERS: dict[str, str] = {
    "dpm_adaptive": "it calls the model as often as all pictures of a batch together seem to need, so that no plan "
    "could say what one takes, and none would be the same in another batch: take dpm_fast, or dpm2",
    "dpm++2mv2": "it takes the picture by the mean of two steps' sizes and the noise by one, so that no number of "
    "steps comes to what the model draws: take dpmpp_2m",
    "RePaintScheduler": "it draws around a mask by going back and forth; tintype edit --mask does so with any sampler",
    **dict.fromkeys(("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"), _BACKWARDS),
    **dict.fromkeys(
        (
            *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
            *("FlowMapEulerDiscreteScheduler", "LTXEulerAncestralRFScheduler", "PiflowScheduler", "MiniMaxH3Scheduler"),
            *("HeliosScheduler", "HeliosDMDScheduler", "RFD4ProteinaScheduler"),
        ),
        _FLOW,
    ),
    **dict.fromkeys(
        (
            *("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"),
            *("KarrasVeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"),
        ),
        _EDM,
    ),
    **dict.fromkeys(("CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler", "SCMScheduler"), _DISTILLED),
    **dict.fromkeys(
        (
            *("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"),
            "VQDiffusionScheduler",
        ),
        _TOKENS,
    ),
    **dict.fromkeys(
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "UnCLIPScheduler"),
        _OF_ONE_MODEL,
    ),
}
REFUSED_SPACINGS: dict[str, str] = {
    "gits": "it is a table of noise levels searched for one model: take ays, which is another such",
    "lcm": "it is the timesteps that the samplers lcm and tcd take by themselves: leave it out with them",
    **dict.fromkeys(("flux", "flux2", "ltx2", "logit_normal"), _FLOW.replace("euler, heun or lcm", "sgm_uniform")),
}
