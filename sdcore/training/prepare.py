"""From settings to everything that the loop needs, checked before the first step."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sdcore.errors import FileError, UsageError
from sdcore.files.atomic import json_writer, make_folder, replace_file
from sdcore.files.jsonfile import read_json
from sdcore.image.pictures import to_images
from sdcore.pipeline.text_to_image import EMBEDDED, TextToImage
from sdcore.training.choices import choose, choose_folder, choose_word
from sdcore.training.data.cache import LatentCache, TextCache
from sdcore.training.data.captions import full_caption
from sdcore.training.data.examples import ExampleBatch, Examples
from sdcore.training.data.order import Order
from sdcore.training.data.pictures import mask_pixels, pixels
from sdcore.training.data.scan import Scan, Scanned, scan
from sdcore.training.data.sources import prior_missing, read_items
from sdcore.training.estimate import Estimate, estimate_step
from sdcore.training.facts import facts, model_facts, tag_frequency
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.inpainting import mask_channels
from sdcore.training.methods import Method, check_output, prepare_method
from sdcore.training.network import CaptionReader
from sdcore.training.objective import Objective
from sdcore.training.prior import paint_prior
from sdcore.training.processes import Processes
from sdcore.training.run import Run
from sdcore.training.state import trained
from sdcore.training.validation import Validation

_TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MASKED = 4  # pictures with masks in which a word's attention is measured
_SHOWN = 64  # numbers of each tensor that tell a model from others


@dataclass
class Prepared:
    """A fine-tuning, ready to begin or to go on.

    Attributes:
        settings: complete.
        texts: cache of what text encoders that are not trained make of captions.
        chosen: a line for each thing that the settings left open.
        scheduler: the noise process of the model, as in a scheduler_config.json.
        base: what tells the model that is trained from others.
    """

    settings: FinetuneSettings
    method: Method
    scan: Scan
    order: Order
    examples: Examples
    texts: TextCache
    chosen: list[str]
    scheduler: dict[str, Any]
    processes: Processes
    base: str
    began: float = field(default_factory=time.time)

    @property
    def is_main(self) -> bool:
        return self.processes.is_main

    @property
    def word(self) -> str:
        """The word that is taught; "" where there is none."""
        settings = self.settings
        learned = settings.inversion.token if settings.method == "textual_inversion" else ""
        return settings.validation.word or learned or settings.data.trigger

    # --- what is said ----------------------------------------------------------------------------

    def summary(self) -> str:
        """Data, choices, what is trained, and what it is about to cost."""
        run = self.settings.run
        processes = self.processes.count
        together = run.batch_size * run.accumulate * processes
        epochs = run.steps * run.accumulate * processes / self.order.per_epoch
        once = self.order.per_epoch / (run.accumulate * processes)
        each = (
            ""
            if together == run.batch_size
            else (f" ({run.batch_size} at once x {run.accumulate} batches x {processes} processes)")
        )
        steps = (
            f"steps      {run.steps}, each of {together} pictures{each}; all pictures are seen in "
            f"{once:.3g} steps, so {epochs:.3g} times"
        )
        trains = f"trains     {self.method.what}: {self.method.numbers:,} numbers"
        cost = self._cost()
        seconds = cost.seconds * run.steps * run.accumulate
        about = (
            f"about      {cost.memory / 1e9:.1f} GB of memory, "
            f"{cost.checkpoint * (run.keep + 1) / 1e9:.2g} GB of disk, {_duration(seconds)} on "
            f"{self.processes.device.type}"
        )
        tokenizer = self.method.pipe.readers[0][0]
        chosen = [f"chosen     {line}" for line in self.chosen]
        lines = [self.scan.summary(tokenizer), steps, trains, *chosen, about]
        return "\n".join([*lines, f"folder     {run.folder}"])

    def _cost(self) -> Estimate:
        run, scanned = self.settings.run, self.scan.pictures
        largest = max((picture.fit.bucket for picture in scanned), key=lambda size: size.area)
        return estimate_step(
            self.method.network,
            largest,
            self.scan.factor,
            run.batch_size,
            dtype=_TYPES[run.precision],
            averaged=bool(run.ema_decay),
            device=self.processes.device,
        )

    def command_to_paint(self, path: Path) -> str:
        """The command that paints with what was written."""
        settings = self.settings
        quoted = _quoted(str(path))
        model = "" if settings.model == "embedded" else f" --model {_quoted(settings.model)}"
        known = [*self.settings.validation.prompts, *self._captions(), self.word, "a picture"]
        prompt = _quoted(next(filter(None, known)))
        if settings.method == "full":
            return f"sdcore paint {prompt} --model {quoted}"
        kind = "--embedding" if settings.method == "textual_inversion" else "--lora"
        return f"sdcore paint {prompt}{model} {kind} {quoted}"

    # --- what the loop takes ---------------------------------------------------------------------

    def prompts(self) -> list[str]:
        """What is painted now and then: the settings' prompts, or captions of the data."""
        how = self.settings.validation
        if self.method.pipe.kind.reads_mask:
            return []  # such a model paints into pictures, not from prompts alone
        listed = how.prompts or self._captions()
        if self.word and not how.prompts:
            listed = [*[text for text in listed if self.word in text], self.word]
        return list(dict.fromkeys(listed))[: how.images]

    def _captions(self) -> list[str]:
        """What is said of one's own pictures, each once."""
        texts = [full_caption(p.item) for p in self.scan.pictures if not p.item.prior]
        return list(dict.fromkeys(filter(None, texts)))

    def validation(self, run: Run, objective: Objective, read: CaptionReader) -> Validation:
        """What looks at the run now and then."""
        return Validation(
            run,
            self.method.pipe,
            objective,
            read,
            self.settings.validation,
            prompts=self.prompts(),
            word=self.word,
            held_out=self.examples.held_out(),
            latents=self.latents,
            seen=self.seen,
            masked=list(self._masked()),
        )

    def _masked(self) -> Iterable[tuple[Any, str, Tensor]]:
        """Pictures whose subject's mask is known and whose caption says the word."""
        found = 0
        readable = not self.method.pipe.kind.reads_mask  # heatmaps_of_image has no mask to hand on
        for picture in self.scan.pictures if readable else ():
            masked = picture.item.mask is not None or picture.item.look.alpha_mask
            caption = full_caption(picture.item)
            if masked and self.word and self.word in caption and found < _MASKED:
                found += 1
                (image,) = to_images(pixels(picture, picture.fit, False)[None])
                yield image, caption, mask_pixels(picture, picture.fit, False)

    def latents(self, batch: ExampleBatch) -> Tensor:
        """The latents of a batch (B, C, h, w): those in it, or encoded now."""
        if batch.latents is not None:
            return batch.latents
        assert batch.pixels is not None
        encode = self.method.pipe.autoencoder.encode
        with torch.no_grad():  # one at a time, as for the cache: a batch rounds otherwise
            return torch.cat([encode(image[None]) for image in batch.pixels])

    def seen(self, batch: ExampleBatch, noisy: Tensor, seed: int, number: int) -> Tensor:
        """What the UNet reads: noisy latents, and of a model that fills holes a mask drawn anew."""
        if not self.method.pipe.kind.reads_mask:
            return noisy
        assert batch.pixels is not None, "the latents of such a model's pictures are not cached"
        more = mask_channels(self.method.pipe.autoencoder, batch.pixels, seed, number)
        return torch.cat([noisy, more], dim=1)

    def record(self, run: Run) -> None:
        """Write what the run is of; refuse to go on with other data or another model.

        Raises:
            UsageError: a run of this folder began with others.
        """
        path = run.folder / "data.json"
        now = {"pictures": _of_pictures(self.scan), "model": self.base}
        if run.step > 0 and path.exists():
            try:
                before = read_json(path)
            except FileError as error:
                raise FileError(
                    f"{path} is damaged.",
                    f"It says what the run is of. {error.why}",
                    "Where pictures, captions and model are as before, remove it and start again.",
                ) from error
            changed = [name for name, value in now.items() if before.get(name) != value]
            if changed:
                raise UsageError(
                    f"{run.folder} holds a run of other {' and '.join(changed)}.",
                    "To go on is exact only with the same pictures, captions and weights.",
                    "Use a new run.folder, or put back what the run began with.",
                )
        if run.is_main:
            summary = self.scan.summary(self.method.pipe.readers[0][0]).splitlines()
            replace_file(path, json_writer({**now, "summary": summary}))

    def facts(self, run: Run) -> dict[str, str]:
        """What a trained file says about its training."""
        settings, loop = self.settings, self.settings.run
        data, lora, pictures = settings.data, settings.lora, self.scan.pictures
        own = [picture for picture in pictures if not picture.item.prior]
        captions = {Path(data.source).name: [full_caption(picture.item) for picture in own]}
        file = Path(settings.model).expanduser()
        known = facts(
            training_started_at=datetime.fromtimestamp(self.began),
            training_finished_at=datetime.now(),
            output_name=settings.output.name or run.folder.name,
            steps=run.step,
            max_train_steps=loop.steps,
            num_epochs=-(
                -loop.steps * loop.accumulate * self.processes.count // self.order.per_epoch
            ),
            seed=loop.seed,
            network_module="networks.lora" if settings.method == "lora" else None,
            network_dim=lora.rank_or_default if settings.method == "lora" else None,
            network_alpha=lora.alpha_or_rank if settings.method == "lora" else None,
            network_dropout=lora.dropout or None,
            network_args={"algo": lora.kind} if settings.method == "lora" else None,
            learning_rate=loop.learning_rate,
            unet_lr=loop.learning_rate,
            lr_scheduler=loop.schedule,
            lr_warmup_steps=loop.warmup_steps,
            optimizer=loop.optimizer,
            max_grad_norm=loop.max_grad_norm,
            mixed_precision=loop.precision,
            gradient_checkpointing=settings.gradient_checkpointing,
            gradient_accumulation_steps=loop.accumulate,
            batch_size_per_device=loop.batch_size,
            total_batch_size=loop.batch_size * loop.accumulate * self.processes.count,
            num_train_images=sum(picture.item.repeats for picture in own),
            num_reg_images=len(pictures) - len(own),
            num_batches_per_epoch=self.order.per_epoch,
            prior_loss_weight=data.prior.weight if data.prior else None,
            resolution=(data.resolution, data.resolution),
            enable_bucket=data.buckets,
            shuffle_caption=data.shuffle_tags,
            keep_tokens=data.keep_tags,
            caption_dropout_rate=data.dropout,
            flip_aug=data.flip,
            random_crop=data.crop == "random",
            cache_latents=data.cache_latents,
            min_snr_gamma=settings.noise.gamma or 5.0
            if settings.noise.weighting == "min_snr"
            else None,
            noise_offset=settings.noise.offset or None,
            multires_noise_discount=settings.noise.multires or None,
            ip_noise_gamma=settings.noise.perturbation or None,
            zero_terminal_snr=settings.noise.zero_terminal_snr,
            tag_frequency=tag_frequency(captions),
            modelspec_title=settings.output.name or run.folder.name,
            modelspec_trigger_phrase=self.word or None,
        )
        kinds = {"lora": "lora", "textual_inversion": "textual-inversion", "full": ""}
        model = model_facts(
            self.method.pipe,
            file=file if file.is_file() else None,
            kind=kinds[settings.method],
        )
        return {**model, **known}


def prepare(settings: FinetuneSettings, *, cache: bool = True) -> Prepared:
    """Load the model, judge the data, choose what is open, and make the method's layers.

    Args:
        cache: encode the pictures now; False leaves it to their first use.

    Raises:
        UsageError, FileError: settings, model or data that cannot be used.
    """
    settings = choose_word(choose_folder(settings))
    check_output(settings)
    folder, processes = Path(settings.run.folder), Processes()
    device, data = processes.device, settings.data
    kept = Path(data.cache) if data.cache else folder / "cache"
    notes: list[str] = []
    if data.prior is not None and (missing := prior_missing(data.prior)):
        notes.append(f"{missing} class pictures of {data.prior.prompt!r} are painted first")
        if cache:
            with processes.first():
                paint_prior(_open(settings, device), data.prior)
        elif missing == data.prior.count:
            data = data.model_copy(update={"prior": None})
    found = read_items(data, kept)
    pipe = _open(settings, device)
    make_folder(kept)
    if data.resolution is None:
        data = data.model_copy(update={"resolution": min(pipe.native_size.width_height)})
    if pipe.kind.reads_mask:
        data = data.model_copy(update={"cache_latents": False})
    settings = settings.model_copy(update={"data": data})
    scanned = scan(
        found,
        data,
        kept,
        tokenizer=pipe.readers[0][0],
        factor=pipe.autoencoder.factor,
        progress=_bar("pictures are read"),
    )
    _check_word_is_read(settings, scanned)
    samples = Order(scanned.pictures, 1, 0).samples_per_epoch
    base = _fingerprint(pipe)
    settings, chosen = choose(settings, pipe, samples, device)
    chosen = [*notes, *chosen]
    method = prepare_method(settings, pipe)
    run = settings.run
    prepare_networks(method, run.precision)
    order = Order(scanned.pictures, run.batch_size, run.seed)
    latents = _latents(pipe, kept) if data.cache_latents else None
    examples = Examples(scanned, order, run.seed, latents, data.workers)
    ready = Prepared(
        settings,
        method,
        scanned,
        order,
        examples,
        TextCache(kept, _key(*(encoder for _, encoder in pipe.readers))),
        chosen,
        dict(pipe.scheduler.config),
        processes,
        base,
    )
    if cache:
        examples.fill(_bar("pictures are encoded"), processes.index, processes.count)
        processes.wait()
    return ready


def _check_word_is_read(settings: FinetuneSettings, scanned: Scan) -> None:
    """Refuse to learn a word that no caption says: its vectors would stay as they are."""
    token = settings.inversion.token
    if settings.method != "textual_inversion":
        return
    own = [picture.item for picture in scanned.pictures if not picture.item.prior]
    if not any(token in full_caption(item) for item in own):
        raise UsageError(
            f"No caption holds the word {token!r}.",
            f"It is what is learned, and data.trigger is {settings.data.trigger!r}.",
            f"Leave data.trigger out, or write {token} in the captions.",
        )


def _open(settings: FinetuneSettings, device: torch.device) -> TextToImage:
    name = EMBEDDED if settings.model == "embedded" else settings.model
    return TextToImage.from_pretrained(
        name, device=device, prediction_type=settings.prediction_type or None
    )


def prepare_networks(method: Method, precision: str) -> None:
    """Weights as they are computed with fastest, in place.

    What is not trained takes the type that is computed in: half the memory, and no casts.
    """
    parameters = trained(method.pipe.unet)
    if any(".lora_magnitude_vector." in name for name, _ in parameters):
        for _, parameter in parameters:  # PEFT's DoRA takes them as matrices, by views
            parameter.data = parameter.data.contiguous()
    dtype = _TYPES[precision]
    if dtype == torch.float32:
        return
    for parameter in method.network.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _latents(pipe: TextToImage, folder: Path) -> LatentCache:
    autoencoder = pipe.autoencoder

    def encode(image: Tensor) -> Tensor:
        return autoencoder.encode(image.to(next(autoencoder.parameters()).device))

    return LatentCache(folder, _key(autoencoder), encode)


def _key(*networks: nn.Module) -> str:
    """All that what networks compute depends on, but for what they are called with."""
    hashes = (f"{_hash(each, None)} {next(each.parameters()).dtype}" for each in networks)
    return f"{' '.join(hashes)} {torch.__version__}"


def _fingerprint(pipe: TextToImage) -> str:
    """What tells a model from others: the beginning of each of its tensors."""
    texts = [_hash(network, _SHOWN) for network in pipe.networks.values()]
    return hashlib.blake2b(" ".join(texts).encode(), digest_size=16).hexdigest()


def _hash(network: nn.Module, most: int | None) -> str:
    """The hash of a network's parameters, or of so many numbers of each."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in network.named_parameters():
        numbers = parameter.detach().flatten()[:most].cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _of_pictures(scanned: Scan) -> str:
    """The hash of what is trained on: contents, captions and repeats, in their order."""
    rows = [_row(picture) for picture in (*scanned.pictures, *scanned.held_out)]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _row(picture: Scanned) -> list[Any]:
    item = picture.item
    return [picture.digest, full_caption(item), item.repeats, item.prior]


def _bar(text: str) -> Any:
    """A progress function with a bar in a terminal."""
    bar: list[tqdm[Any]] = []

    def progress(done: int, total: int) -> None:
        if not bar:
            bar.append(tqdm(total=total, desc=text, disable=None, leave=False))
        bar[0].update(done - bar[0].n)
        if done == total:
            bar.pop().close()

    return progress


def _quoted(text: str) -> str:
    """A text for a shell; in double quotes where they are enough, which every shell reads."""
    quoted = shlex.quote(text)
    return quoted if quoted == text or set(text) & set('"\\$`!%') else f'"{text}"'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
