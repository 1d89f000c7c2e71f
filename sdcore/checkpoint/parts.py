"""The parts of a model, and where its folder holds them."""

from __future__ import annotations

from collections.abc import Iterable

from sdcore.files.preflight import SCHEDULER, TOKENIZER, ModelFiles, Preflight, preflight

# The components of model_index.json that are run: what each holds, which for a network is the name
# of its weights.
COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
    "scheduler": SCHEDULER,
}


def preflight_model(
    source: ModelFiles, components: Iterable[str], variant: str | None
) -> Preflight:
    """What a whole model is read from, by the components of its model_index.json; see `preflight`.

    A safety checker and a feature extractor, which are not run, are passed over.
    """
    parts = {name: COMPONENTS[name] for name in components if name in COMPONENTS}
    return preflight(source, parts, variant)
