"""Class pictures of DreamBooth, painted by the model that is about to be trained.

They show what the model knows of the class, so that it is not forgotten for the subject (Ruiz et
al. 2022, arXiv:2208.12242, section 3.2).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from sdcore.job.job import make_jobs
from sdcore.metadata.png import save_png
from sdcore.training.data.settings import PriorSettings
from sdcore.training.data.sources import prior_missing

if TYPE_CHECKING:
    from sdcore.pipeline.text_to_image import TextToImage

_AT_ONCE = 4


def paint_prior(pipe: TextToImage, prior: PriorSettings) -> None:
    """Paint what is missing of the class pictures into their folder.

    Picture i is that of seed i, so a painting that was stopped goes on with what is missing.

    Raises:
        UsageError: the prompt cannot be painted.
        FileError: the folder cannot be written.
    """
    folder, missing = Path(prior.source), prior_missing(prior)
    first = prior.count - missing
    with tqdm(total=missing, desc="class pictures", disable=None) as bar:
        for start in range(first, prior.count, _AT_ONCE):
            count = min(_AT_ONCE, prior.count - start)
            jobs = make_jobs([prior.prompt], images_per_prompt=count, seed=start)
            result = pipe.paint(jobs, progress=False)
            for number, image in enumerate(result.images, start):
                save_png(image, folder / f"{number:05d}.png", result.settings[number - start])
            bar.update(count)
