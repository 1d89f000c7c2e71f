"""Flags as other tools have them, and what they are called here.

An alias stands for a flag of ours with the same meaning and the same value. What has none of the
same meaning is answered with what to use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

# Ours <- those of Stable Diffusion's first scripts, diffusers, sd-scripts, InvokeAI, the web UI.
ALIASES = {
    "--guidance-scale": "--cfg-scale --cfg --scale --guidance --cfgscale -C",
    "--guidance-rescale": "--cfg-rescale --cfg-rescale-multiplier",
    "--scheduler": "--sampler --sampler-name --sampling-method -A",
    "--width": "-W",
    "--height": "-H",
    "--steps": "-s --num-inference-steps --ddim-steps --sampling-steps --num-steps",
    "--seed": "-S",
    "--images": "-n --num-images --n-samples --n-iter --num-images-per-prompt --images-per-prompt",
    "--batch-size": "-b --batch",
    "--model": "-m --ckpt --checkpoint --ckpt-path --pretrained-model-name-or-path --model-id",
    "--output": "-o --outdir --out --output-dir --output-path --save-to",
    "--negative-prompt": "--negative --neg --neg-prompt --uc --nprompt",
    "--prompt-file": "--prompt-list --txt-file",
    "--lora-folder": "--lora-dir --network-dir",
    "--lora": "--network-weights --lora-path --lora-weights",
    "--embedding": "--textual-inversion --embeddings --textual-inversion-embeddings",
    "--strength": "--denoise --denoising-strength --prompt-strength -f",
    "--mask": "--mask-image --mask-path",
    "--invert-mask": "--mask-invert",
    "--dialect": "--prompt-syntax --prompt-parser",
    "--clip-skip": "--clipskip",
    "--text-encoder": "--clip",
    "--offline": "--local-files-only",
    "--tiled": "--vae-tiling --tile",
    "--from": "--from-picture --from-image",
}
_OURS = {alias: ours for ours, aliases in ALIASES.items() for alias in aliases.split()}
# Flags that need none: what follows them is an argument as it stands.
_NO_FLAG = ("--prompt", "-p", "--init-image", "--init-img", "--image", "-I")
# What other tools have, and how the same is done here.
ANSWERS = {
    "--fp16": "Use --precision fp16.",
    "--half": "Use --precision fp16.",
    "--no-half": "Use --precision fp32.",
    "--full-precision": "Use --precision fp32.",
    "--bf16": "Use --precision bf16.",
    "--xformers": "Use --attention xformers.",
    "--enable-xformers-memory-efficient-attention": "Use --attention xformers.",
    "--medvram": "Use --batch-size 1, --precision fp16 or --attention chunked.",
    "--lowvram": "Use --batch-size 1, --precision fp16 or --attention chunked.",
    "--cpu": "Use --device cpu.",
    "--gpu": "Use --device cuda.",
    "--plms": "Use --scheduler pndm.",
    "--no-metadata": "Settings stay in the picture; an image program can save it without them.",
    "--hr-scale": "Use --hires with the size, such as --hires 1024x1024.",
    "--upscale": "Use --hires with the size, such as --hires 1024x1024.",
    "--controlnet": "There is no ControlNet here; sdcore.trace works on a pipeline that has one.",
    "--yes": "Nothing is asked for, so nothing needs it.",
}


def in_our_words(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """Arguments with the flags of other tools in the words of ours.

    Args:
        known: the flags of the command: none of them is changed, and none that it lacks comes in.
    """
    given = list(arguments)
    found: list[str] = []
    while given:
        argument = given.pop(0)
        if argument == "--":
            return [*found, argument, *given]
        name, equals, value = argument.partition("=")
        if not name.startswith("-") or name in known:
            found.append(argument)
            continue
        plain = name.replace("_", "-") if name.startswith("--") else name
        ours = plain if plain in known else _OURS.get(plain, "")
        if not ours and not name.startswith("--") and name[:2] in _OURS and name[2:].isdigit():
            ours, equals, value = _OURS[name[:2]], "=", name[2:]  # -W512
        if ours in known:
            found.append(f"{ours}{equals}{value}")
        elif plain in _NO_FLAG:
            found += [value] if equals else []
        else:
            found.append(argument)
    return found


def answer(flag: str) -> str | None:
    """How the same is done here as with a flag of other tools; None where it is not known."""
    return ANSWERS.get(flag.replace("_", "-"))
