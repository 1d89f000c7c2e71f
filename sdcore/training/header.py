"""What the header of a trained file says about its training: see facts.py for the names."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sdcore.training.data.captions import full_caption
from sdcore.training.export import output_name
from sdcore.training.facts import facts, model_facts, tag_frequency
from sdcore.training.prepared import Prepared
from sdcore.training.run import Run


def header(ready: Prepared, run: Run) -> dict[str, str]:
    """What a trained file says about its training."""
    settings, loop = ready.settings, ready.settings.run
    data, lora, pictures = settings.data, settings.lora, ready.scan.pictures
    own = [picture for picture in pictures if not picture.item.prior]
    captions = {Path(data.source).name: [full_caption(picture.item) for picture in own]}
    file = Path(settings.model).expanduser()
    known = facts(
        training_started_at=datetime.fromtimestamp(ready.began),
        training_finished_at=datetime.now(),
        output_name=output_name(settings),
        steps=run.step,
        max_train_steps=loop.steps,
        num_epochs=-(
            -loop.steps * loop.accumulate * ready.processes.count // ready.order.per_epoch
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
        total_batch_size=loop.batch_size * loop.accumulate * ready.processes.count,
        num_train_images=sum(picture.item.repeats for picture in own),
        num_reg_images=len(pictures) - len(own),
        num_batches_per_epoch=ready.order.per_epoch,
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
        modelspec_title=output_name(settings),
        modelspec_trigger_phrase=ready.word or None,
    )
    kinds = {"lora": "lora", "textual_inversion": "textual-inversion", "full": ""}
    model = model_facts(
        ready.method.pipe,
        file=file if file.is_file() else None,
        kind=kinds[settings.method],
    )
    return {**model, **known}
