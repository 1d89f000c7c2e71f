"""From settings to everything that the loop needs, checked before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sdcore.errors import UsageError, name_some, warn
from sdcore.files.atomic import check_writable, make_folder
from sdcore.pipeline.text_to_image import EMBEDDED, TextToImage
from sdcore.training.choices import choose, choose_folder, choose_word, idle
from sdcore.training.data.cache import LatentCache, TextCache
from sdcore.training.data.captions import full_caption
from sdcore.training.data.examples import Examples
from sdcore.training.data.order import Order
from sdcore.training.data.scan import Scan, scan
from sdcore.training.data.sources import prior_missing, read_items
from sdcore.training.export import check_output
from sdcore.training.finetune_settings import FinetuneSettings
from sdcore.training.fingerprint import of_networks, what_it_computes
from sdcore.training.methods import prepare_method, prepare_networks
from sdcore.training.prepared import Prepared
from sdcore.training.prior import paint_prior
from sdcore.training.processes import Processes


def prepare(settings: FinetuneSettings, *, cache: bool = True) -> Prepared:
    """Load the model, judge the data, choose what is open, and make the method's layers.

    Args:
        cache: encode the pictures now; False leaves it to their first use, as a dry run does, and
            reads the checkpoints that are there.

    Raises:
        UsageError, FileError: settings, model or data that cannot be used.
    """
    settings = choose_folder(choose_word(settings))
    check_output(settings)
    if names := idle(settings):
        warn(f"without effect, with the method {settings.method}: {name_some(names)}")
    folder, processes = Path(settings.run.folder), Processes()
    device, data = processes.device, settings.data
    kept = Path(data.cache) if data.cache else folder / "cache"
    check_writable(folder, f"run.folder={folder}")
    check_writable(kept, f"data.cache={kept}")
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
    for place in (folder, kept):
        make_folder(place)
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
    _check_captions(settings, scanned)
    samples = Order(scanned.pictures, 1, 0).samples_per_epoch
    base = of_networks(pipe.networks.values())
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
        TextCache(kept, what_it_computes(*(encoder for _, encoder in pipe.readers))),
        chosen,
        dict(pipe.scheduler.config),
        processes,
        base,
    )
    ready.check(verify=not cache)
    if cache:
        examples.fill(_bar("pictures are encoded"), processes.index, processes.count)
        processes.wait()
    return ready


def _check_captions(settings: FinetuneSettings, scanned: Scan) -> None:
    """Refuse to learn a word that no caption says; warn where none says anything."""
    captions = [full_caption(p.item) for p in scanned.pictures if not p.item.prior]
    token = settings.inversion.token
    if settings.method == "textual_inversion" and not any(token in text for text in captions):
        raise UsageError(
            f"No caption holds the word {token!r}.",
            f"It is what is learned, and data.trigger is {settings.data.trigger!r}.",
            f"Leave data.trigger out, or write {token} in the captions.",
        )
    if not any(captions):
        warn(
            "no picture has a caption, and there is no data.trigger: what is learned shows in "
            "pictures of every prompt"
        )


def _open(settings: FinetuneSettings, device: torch.device) -> TextToImage:
    name = EMBEDDED if settings.model == "embedded" else settings.model
    return TextToImage.from_pretrained(
        name, device=device, prediction_type=settings.prediction_type or None
    )


def _latents(pipe: TextToImage, folder: Path) -> LatentCache:
    autoencoder = pipe.autoencoder

    def encode(image: Tensor) -> Tensor:
        return autoencoder.encode(image.to(next(autoencoder.parameters()).device))

    return LatentCache(folder, what_it_computes(autoencoder), encode)


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
