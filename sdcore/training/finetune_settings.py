"""The settings of a fine-tuning. All but `data` may be left out: see choices.py for what is taken.

sdcore train data=my_pictures
sdcore train method=full model=sd15.safetensors data=my_pictures run.steps=2000
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sdcore.training.data.settings import DataSettings
from sdcore.training.objective import NoiseSettings
from sdcore.training.peft_layers import AdapterSettings
from sdcore.training.run_settings import MOST_AT_ONCE, MOST_SEED, MOST_STEPS, RunSettings
from sdcore.training.settings import PathText, Settings

Method = Literal["lora", "full", "textual_inversion"]


class FullSettings(Settings):
    """What of the networks is trained by the method full."""

    layers: Literal["all", "cross"] = "all"  # cross: the attention to the text alone
    text_encoder: bool = False


class InversionSettings(Settings):
    """The word that is learned by the method textual_inversion (Gal et al. 2022, arXiv:2208.01618).

    token: it stands for the vectors in a prompt; empty: `data.trigger`.
    begin_from: words whose vectors it begins as.
    """

    token: str = ""
    vectors: int = Field(default=4, ge=1, le=75)
    begin_from: str = "picture"


class ValidationSettings(Settings):
    """What is looked at now and then: see validation.py. Pictures come at `run.sample_every`."""

    prompts: list[str] = []  # empty: captions of the data, and the trigger word
    other_prompts: list[str] = []  # of other things, which should not change; empty: two
    images: int = Field(default=4, ge=0, le=64)  # prompts that are painted at most; 0: none
    steps: int = Field(default=20, ge=1, le=200)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)  # None: the model's
    seed: int = Field(default=1, ge=0, le=MOST_SEED)
    word: str = ""  # whose heatmap is drawn; empty: the trigger word or the learned one
    patience: int = Field(
        default=0, ge=0
    )  # stop after so many looks without a better loss; 0: never


class FinetuneRunSettings(RunSettings):
    """As of every run; 0 for what choices.py chooses."""

    folder: PathText = ""
    steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    batch_size: int = Field(default=0, ge=0, le=MOST_AT_ONCE)
    learning_rate: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    warmup_steps: int = Field(default=-1, ge=-1)  # -1: chosen
    schedule: Literal[
        "warmup_stable_decay", "constant", "linear", "cosine", "cosine_restarts", "polynomial"
    ] = "cosine"
    precision: Literal["no", "bf16", "fp16", "auto"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    log_every: int = Field(default=10, ge=1)
    checkpoint_every: int = Field(default=0, ge=0)
    sample_every: int = Field(default=0, ge=0)


class OutputSettings(Settings):
    """What is written at the end, into `run.folder`."""

    name: str = ""  # of the files; empty: the run's folder
    formats: list[Literal["kohya", "diffusers", "peft", "folder", "single_file"]] = []
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"


# Settings of diffusers' scripts and of kohya's, under the names that they have here.
_OTHER_NAMES = {
    **dict.fromkeys(("lr", "unet_lr"), "run.learning_rate"),
    **dict.fromkeys(("text_encoder_lr", "text_encoder_learning_rate"), "text_encoder_rate"),
    **dict.fromkeys(("max_train_steps", "num_train_steps", "iterations"), "run.steps"),
    **dict.fromkeys(
        ("epochs", "num_train_epochs", "max_train_epochs"),
        "run.steps: a step is a batch, and a dry run says how many make an epoch",
    ),
    **dict.fromkeys(("train_batch_size", "batch"), "run.batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "gradient_accumulation"), "run.accumulate"),
    **dict.fromkeys(("network_dim", "dim", "lora_rank", "network_rank"), "lora.rank"),
    **dict.fromkeys(("network_alpha", "lora_alpha"), "lora.alpha"),
    **dict.fromkeys(("output_dir", "logging_dir", "output_folder"), "run.folder"),
    **dict.fromkeys(("output_name", "save_name"), "output.name"),
    **dict.fromkeys(("lr_scheduler", "lr_schedule", "scheduler"), "run.schedule"),
    **dict.fromkeys(("lr_warmup_steps", "warmup"), "run.warmup_steps"),
    **dict.fromkeys(("optimizer_type", "use_8bit_adam"), "run.optimizer"),
    **dict.fromkeys(("mixed_precision", "dtype"), "run.precision"),
    **dict.fromkeys(("checkpointing_steps", "save_every_n_steps"), "run.checkpoint_every"),
    **dict.fromkeys(("pretrained_model_name_or_path", "base_model", "ckpt", "checkpoint"), "model"),
    **dict.fromkeys(
        ("train_data_dir", "instance_data_dir", "dataset", "dataset_name", "images", "folder"),
        "data",
    ),
    **dict.fromkeys(("instance_prompt", "trigger_word", "token", "class_tokens"), "data.trigger"),
    **dict.fromkeys(("size", "image_size"), "data.resolution"),
    "noise_offset": "noise.offset",
    **dict.fromkeys(("snr_gamma", "min_snr_gamma"), "noise.weighting=min_snr with noise.gamma"),
    **dict.fromkeys(("random_flip", "flip_aug"), "data.flip"),
    "caption_column": "data.text_column",
    **dict.fromkeys(("validation_prompt", "sample_prompts"), "validation.prompts"),
    "use_ema": "run.ema_decay",
}


class FinetuneSettings(Settings):
    """All of a fine-tuning."""

    SHORT: ClassVar[Mapping[str, str]] = {"data": "source"}  # data=FOLDER
    OTHER_NAMES: ClassVar[Mapping[str, str]] = _OTHER_NAMES

    @field_validator("method", mode="before")
    @classmethod
    def _dreambooth(cls, method: object) -> object:
        if isinstance(method, str) and method.lower() == "dreambooth":
            raise ValueError(
                "DreamBooth is a setting of the data: method=lora or full, with data.trigger, "
                "data.prior.source and data.prior.prompt"
            )
        return method.lower() if isinstance(method, str) else method

    method: Method = "lora"
    model: PathText = "embedded"  # that, a folder, a single file, or a hub name
    prediction_type: Literal["", "epsilon", "v_prediction"] = ""  # of a single file that is silent
    data: DataSettings
    lora: AdapterSettings = AdapterSettings()
    full: FullSettings = FullSettings()
    inversion: InversionSettings = InversionSettings()
    text_encoder_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # None: half
    noise: NoiseSettings = NoiseSettings()
    gradient_checkpointing: bool = False
    validation: ValidationSettings = ValidationSettings()
    output: OutputSettings = OutputSettings()
    run: FinetuneRunSettings = FinetuneRunSettings()
