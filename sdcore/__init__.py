"""Text-to-image diffusion in which you can see and steer how a prompt controls the picture.

Every public name is here, and is loaded when it is first used, so `import sdcore` costs next to
nothing. The way from prompt to picture: text, prompt, sampling, unet, diffusion, image; pipeline
joins them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdcore.adapters.embedding_saving import save_embedding as save_embedding
    from sdcore.adapters.lora import LoraWeight as LoraWeight
    from sdcore.adapters.lora import apply_loras as apply_loras
    from sdcore.adapters.lora import fit_lora as fit_lora
    from sdcore.adapters.lora_file import read_lora as read_lora
    from sdcore.adapters.lora_saving import save_lora as save_lora
    from sdcore.adapters.textual_inversion import apply_embeddings as apply_embeddings
    from sdcore.adapters.textual_inversion import read_embedding as read_embedding
    from sdcore.adapters.textual_inversion import unused_words as unused_words
    from sdcore.app.explain_page import fill_page as fill_page
    from sdcore.app.explain_record import explain_job as explain_job
    from sdcore.attention import BACKENDS as BACKENDS
    from sdcore.attention import Attend as Attend
    from sdcore.attention import Control as Control
    from sdcore.attention import CrossAttention as CrossAttention
    from sdcore.attention import SelfAttention as SelfAttention
    from sdcore.attention import Site as Site
    from sdcore.attention_choice import use_attention as use_attention
    from sdcore.attention_inputs import causal_mask as causal_mask
    from sdcore.checkpoint.interop import as_diffusers_unet as as_diffusers_unet
    from sdcore.checkpoint.interop import (
        as_transformers_text_encoder as as_transformers_text_encoder,
    )
    from sdcore.checkpoint.loading import save_folder as save_folder
    from sdcore.checkpoint.model import Model as Model
    from sdcore.checkpoint.single_file import read_single_file as read_single_file
    from sdcore.checkpoint.single_file import save_single_file as save_single_file
    from sdcore.control.attend_and_excite import AttendAndExcite as AttendAndExcite
    from sdcore.control.attend_and_excite import ExciteSettings as ExciteSettings
    from sdcore.control.chain import at_sites as at_sites
    from sdcore.control.chain import chain as chain
    from sdcore.control.chain import during as during
    from sdcore.control.chain import parts as parts
    from sdcore.control.heatmaps import WordHeatmaps as WordHeatmaps
    from sdcore.control.prompt_edit import EditSettings as EditSettings
    from sdcore.control.prompt_edit import PromptEdit as PromptEdit
    from sdcore.control.regions import Region as Region
    from sdcore.control.regions import Regions as Regions
    from sdcore.control.reweight import Reweight as Reweight
    from sdcore.control.run_control import RunControl as RunControl
    from sdcore.convolution import use_convolution as use_convolution
    from sdcore.diffusion.guidance import Guidance as Guidance
    from sdcore.diffusion.schedulers import make_scheduler as make_scheduler
    from sdcore.errors import FileError as FileError
    from sdcore.errors import MemoryLimitError as MemoryLimitError
    from sdcore.errors import NonFiniteError as NonFiniteError
    from sdcore.errors import SdcoreError as SdcoreError
    from sdcore.errors import UsageError as UsageError
    from sdcore.image.autoencoder import Autoencoder as Autoencoder
    from sdcore.image.pictures import open_mask as open_mask
    from sdcore.image.pictures import open_picture as open_picture
    from sdcore.image.pictures import to_images as to_images
    from sdcore.job.adapters import EmbeddingSettings as EmbeddingSettings
    from sdcore.job.adapters import HiresSettings as HiresSettings
    from sdcore.job.adapters import LoraSettings as LoraSettings
    from sdcore.job.adapters import RegionSettings as RegionSettings
    from sdcore.job.budget import Budget as Budget
    from sdcore.job.job import Job as Job
    from sdcore.job.job import make_jobs as make_jobs
    from sdcore.job.record import ImageSettings as ImageSettings
    from sdcore.job.record import job_from_dict as job_from_dict
    from sdcore.job.record import job_to_dict as job_to_dict
    from sdcore.job.sources import Handover as Handover
    from sdcore.job.sources import Latents as Latents
    from sdcore.job.sources import Noise as Noise
    from sdcore.job.sources import Picture as Picture
    from sdcore.metadata.png import read_recipe as read_recipe
    from sdcore.metadata.png import read_settings as read_settings
    from sdcore.metadata.png import save_png as save_png
    from sdcore.pipeline.image_heatmaps import heatmaps_of_image as heatmaps_of_image
    from sdcore.pipeline.result import Moment as Moment
    from sdcore.pipeline.result import TextToImageResult as TextToImageResult
    from sdcore.pipeline.second_pass import enlarge as enlarge
    from sdcore.pipeline.second_pass import first_size as first_size
    from sdcore.pipeline.second_pass import refine as refine
    from sdcore.pipeline.text_to_image import TextToImage as TextToImage
    from sdcore.pipeline.trace import trace as trace
    from sdcore.positions import LearnedPositions as LearnedPositions
    from sdcore.positions import SinusoidalPositions as SinusoidalPositions
    from sdcore.positions import sinusoid as sinusoid
    from sdcore.prompt.explain import explain_prompt as explain_prompt
    from sdcore.prompt.tokens import read_tokens as read_tokens
    from sdcore.recurrence import Recurrence as Recurrence
    from sdcore.sequence.decoding import beam_search as beam_search
    from sdcore.sequence.decoding import greedy as greedy
    from sdcore.sequence.recurrent_translator import RecurrentTranslator as RecurrentTranslator
    from sdcore.sequence.recurrent_translator import (
        RecurrentTranslatorConfig as RecurrentTranslatorConfig,
    )
    from sdcore.sequence.transformer import Transformer as Transformer
    from sdcore.sequence.transformer import TransformerConfig as TransformerConfig
    from sdcore.size import Size as Size
    from sdcore.size import SizeConditioning as SizeConditioning
    from sdcore.text.config import CLIPTextConfig as CLIPTextConfig
    from sdcore.text.encoder import CLIPTextEncoder as CLIPTextEncoder
    from sdcore.text.recurrent_encoder import RecurrentTextEncoder as RecurrentTextEncoder
    from sdcore.text.tokenizer import Tokenizer as Tokenizer
    from sdcore.training.finetune import finetune as finetune
    from sdcore.training.finetune_settings import FinetuneSettings as FinetuneSettings
    from sdcore.unet.config import UNetConfig as UNetConfig
    from sdcore.unet.spatial_transformer import SpatialTransformer as SpatialTransformer
    from sdcore.unet.unet import UNet as UNet

__version__ = "0.2.0"

_HOMES = {
    "adapters.embedding_saving": "save_embedding",
    "adapters.lora": "LoraWeight apply_loras fit_lora",
    "adapters.lora_file": "read_lora",
    "adapters.lora_saving": "save_lora",
    "adapters.textual_inversion": "apply_embeddings read_embedding unused_words",
    "app.explain_page": "fill_page",
    "app.explain_record": "explain_job",
    "attention": "Attend BACKENDS Control CrossAttention SelfAttention Site",
    "attention_choice": "use_attention",
    "attention_inputs": "causal_mask",
    "checkpoint.interop": "as_diffusers_unet as_transformers_text_encoder",
    "checkpoint.loading": "save_folder",
    "checkpoint.model": "Model",
    "checkpoint.single_file": "read_single_file save_single_file",
    "control.attend_and_excite": "AttendAndExcite ExciteSettings",
    "control.chain": "at_sites chain during parts",
    "control.heatmaps": "WordHeatmaps",
    "control.prompt_edit": "EditSettings PromptEdit",
    "control.regions": "Region Regions",
    "control.reweight": "Reweight",
    "control.run_control": "RunControl",
    "convolution": "use_convolution",
    "diffusion.guidance": "Guidance",
    "diffusion.schedulers": "make_scheduler",
    "errors": "FileError MemoryLimitError NonFiniteError SdcoreError UsageError",
    "image.autoencoder": "Autoencoder",
    "image.pictures": "open_mask open_picture to_images",
    "job.adapters": "EmbeddingSettings HiresSettings LoraSettings RegionSettings",
    "job.budget": "Budget",
    "job.job": "Job make_jobs",
    "job.record": "ImageSettings job_from_dict job_to_dict",
    "job.sources": "Handover Latents Noise Picture",
    "metadata.png": "read_recipe read_settings save_png",
    "pipeline.image_heatmaps": "heatmaps_of_image",
    "pipeline.result": "Moment TextToImageResult",
    "pipeline.second_pass": "enlarge first_size refine",
    "pipeline.text_to_image": "TextToImage",
    "pipeline.trace": "trace",
    "positions": "LearnedPositions SinusoidalPositions sinusoid",
    "prompt.explain": "explain_prompt",
    "prompt.tokens": "read_tokens",
    "recurrence": "Recurrence",
    "sequence.decoding": "beam_search greedy",
    "sequence.recurrent_translator": "RecurrentTranslator RecurrentTranslatorConfig",
    "sequence.transformer": "Transformer TransformerConfig",
    "size": "Size SizeConditioning",
    "text.config": "CLIPTextConfig",
    "text.encoder": "CLIPTextEncoder",
    "text.recurrent_encoder": "RecurrentTextEncoder",
    "text.tokenizer": "Tokenizer",
    "training.finetune": "finetune",
    "training.finetune_settings": "FinetuneSettings",
    "unet.config": "UNetConfig",
    "unet.spatial_transformer": "SpatialTransformer",
    "unet.unet": "UNet",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdcore' has no attribute {name!r}")
    value = getattr(import_module(f"sdcore.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
