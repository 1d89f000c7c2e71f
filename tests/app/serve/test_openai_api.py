"""OpenAI's own client, unmodified."""

from __future__ import annotations

import base64
import io

import openai
import pytest
from PIL import Image

from sdcore import Job, Size, TextToImage
from sdcore.job.sources import Picture


@pytest.fixture(scope="module")
def pipe(sd_folder) -> TextToImage:
    return TextToImage.from_pretrained(sd_folder)


@pytest.fixture(scope="module")
def client(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image: Image.Image, name: str) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, "PNG")
    file.seek(0)
    file.name = name
    return file


def test_generations_are_the_pictures_of_their_jobs(client, pipe) -> None:
    answer = client.images.generate(
        prompt="a cat on a tree", n=2, size="64x48", response_format="b64_json", quality="hd",
        extra_body={"seed": 4, "steps": 2, "scheduler": "euler a"},
    )  # fmt: skip
    for number, image in enumerate(answer.data):
        job = Job("a cat on a tree", seed=4 + number, steps=2, size=Size(64, 48))
        expected = pipe.paint(job.changed(scheduler="euler a"))
        assert opened(image.b64_json).tobytes() == expected.images[0].tobytes()
        assert opened(image.b64_json).info["sdcore"] == expected.settings[0].to_json()
    assert answer.ignored == ["quality"]
    url = client.images.generate(prompt="a cat", response_format="url", extra_body={"steps": 1})
    assert opened(url.data[0].url.removeprefix("data:image/png;base64,")).size == (64, 64)


def test_edits_repaint_what_is_transparent_in_the_mask(client, pipe) -> None:
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    hole = Image.new("L", image.size, 255)
    hole.paste(0, (16, 16, 48, 40))
    mask = Image.merge("RGBA", (*Image.new("RGB", image.size).split(), hole))
    white = Image.eval(hole, lambda level: 255 - level)
    cut = image.copy()
    cut.putalpha(hole)
    how = {"seed": 2, "steps": 3}
    expected = pipe.paint(Job("a dog", **how, source=Picture(image, None, white))).images[0]
    answer = client.images.edit(
        image=png(image, "a.png"), mask=png(mask, "m.png"), prompt="a dog", extra_body=how
    )
    assert opened(answer.data[0].b64_json).tobytes() == expected.tobytes()
    of_itself = pipe.paint(Job("a dog", **how, source=Picture(cut, None, white))).images[0]
    answer = client.images.edit(image=png(cut, "a.png"), prompt="a dog", extra_body=how)
    assert opened(answer.data[0].b64_json).tobytes() == of_itself.tobytes()
    whole = pipe.paint(Job("a dog", **how, source=Picture(image, 0.7))).images[0]
    answer = client.images.edit(
        image=png(image, "a.png"), prompt="a dog", extra_body={**how, "strength": 0.7}
    )
    assert opened(answer.data[0].b64_json).tobytes() == whole.tobytes()


def test_models_and_errors_are_what_the_client_expects(client) -> None:
    assert "second" in [model.id for model in client.models.list()]
    for wrong in (
        {"n": 99}, {"size": "7x7"}, {"model": "dall-e-9"}, {"output_format": "jpeg"},
        {"extra_body": {"stepz": 3}}, {"extra_body": {"strength": 1}},
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a cat", **wrong)
        assert caught.value.body["why"] and caught.value.body["hint"]
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        client.images.edit(image=io.BytesIO(b"no picture"), prompt="a cat")
