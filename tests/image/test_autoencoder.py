"""The autoencoder against diffusers' own, its scaling, old files, and what it does on overflow."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from sdcore.errors import FileError, NonFiniteError, UsageError
from sdcore.image.autoencoder import Autoencoder
from sdcore.image.autoencoder_config import AutoencoderConfig
from tests import tiny


@pytest.fixture
def reference(sd_folder: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(sd_folder, subfolder="vae").eval()


@pytest.fixture
def ours(sd_folder: Path) -> Autoencoder:
    return Autoencoder.from_pretrained(sd_folder, subfolder="vae")


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_encode_and_decode_equal_diffusers(ours, reference, pictures) -> None:
    scale = reference.config["scaling_factor"]
    latents = ours.encode(pictures)
    torch.testing.assert_close(latents, reference.encode(pictures).latent_dist.mean * scale)
    torch.testing.assert_close(ours.decode(latents), reference.decode(latents / scale).sample)
    assert latents.shape == (2, 4, 6, 8) and ours.factor == 8 and ours.latent_channels == 4


@torch.no_grad()
def test_sampled_latents_belong_to_each_picture_alone(ours, reference, pictures) -> None:
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    together = ours.encode(pictures, generators())
    alone = ours.encode(pictures[1:], generators()[1:])
    torch.testing.assert_close(together[1:], alone)
    posterior = reference.encode(pictures).latent_dist
    noise = torch.stack([torch.randn(4, 6, 8, generator=g) for g in generators()])
    expected = (posterior.mean + posterior.std * noise) * reference.config["scaling_factor"]
    torch.testing.assert_close(together, expected)
    assert not torch.allclose(together, ours.encode(pictures))


MEAN, STD = [0.5, -1.0, 0.1, 2.0], [1.0, 2.0, 0.5, 4.0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({"shift_factor": 0.2, "scaling_factor": 0.5}, [0.2], [1.0]),
        ({"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.5}, MEAN, STD),
    ],
)
def test_shift_and_statistics_are_undone(changes, mean, std) -> None:
    torch.manual_seed(0)
    kl = tiny.make_autoencoder().eval()
    settings = {k: v for k, v in kl.config.items() if not k.startswith("_")}
    ours = Autoencoder(AutoencoderConfig.from_dict({**settings, **changes}))
    ours.load_state_dict(kl.state_dict())
    shift, spread = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (mean, std))
    picture, latents = torch.rand(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    expected = (kl.encode(picture).latent_dist.mean - shift) / spread * 0.5
    torch.testing.assert_close(ours.encode(picture), expected)
    raw = latents * spread / 0.5 + shift
    torch.testing.assert_close(ours.decode(latents), kl.decode(raw).sample)


@torch.no_grad()
def test_tiles_are_diffusers_tiles(ours, reference) -> None:
    latents = torch.randn(1, 4, 20, 12, generator=torch.Generator().manual_seed(1))
    reference.enable_tiling()
    expected = reference.decode(latents / reference.config["scaling_factor"]).sample
    tiled = ours.decode(latents, tiled=True)
    torch.testing.assert_close(tiled, expected)
    assert not torch.allclose(tiled, ours.decode(latents))


def test_save_opens_in_diffusers_and_back(ours, tmp_path) -> None:
    ours.save_pretrained(tmp_path)
    theirs = AutoencoderKL.from_pretrained(tmp_path)
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    again = Autoencoder.from_pretrained(tmp_path)
    assert again.config == ours.config


def test_old_attention_names_are_read(ours, sd_folder, tmp_path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    source = sd_folder / "vae"
    state = load_file(source / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for key, value in state.items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        renamed[key] = value
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    loaded = Autoencoder.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@torch.no_grad()
@pytest.mark.parametrize("force_upcast", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_what_overflows_in_half_precision_is_computed_in_float32(
    ours, pictures, force_upcast, tiled, recwarn
) -> None:
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    ours.decoder.conv_in.weight.mul_(3e4)  # the sums pass float16's 65504, the weights do not
    ours.encoder.conv_in.weight.mul_(3e5)
    half = ours.half()
    half.config = replace(half.config, force_upcast=force_upcast)
    whole = copy.deepcopy(half).float()
    before = [(tensor.dtype, tensor.data_ptr()) for tensor in half.state_dict().values()]
    picture = half.decode(latents, tiled=tiled)
    torch.testing.assert_close(picture, whole.decode(latents, tiled=tiled))
    encoded = half.encode(pictures, tiled=tiled)
    torch.testing.assert_close(encoded, whole.encode(pictures, tiled=tiled))
    assert [(t.dtype, t.data_ptr()) for t in half.state_dict().values()] == before
    said = [str(warning.message) for warning in recwarn if "overflows" in str(warning.message)]
    assert len(said) == (0 if force_upcast else 2)


@torch.no_grad()
def test_encoded_tiles_are_diffusers_tiles(ours, reference) -> None:
    image = torch.rand(1, 3, 160, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    reference.enable_tiling()
    expected = reference.encode(image).latent_dist.mean * reference.config["scaling_factor"]
    tiled = ours.encode(image, tiled=True)
    torch.testing.assert_close(tiled, expected)
    assert tiled.shape == (1, 4, 20, 12) and not torch.allclose(tiled, ours.encode(image))


@torch.no_grad()
def test_several_samples_of_one_picture_are_those_of_its_copies(ours, pictures) -> None:
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in range(4)]

    got = ours.encode(pictures, generators())
    copies = ours.encode(pictures.repeat_interleave(2, dim=0), generators())
    torch.testing.assert_close(got, copies)


@torch.no_grad()
def test_numbers_that_cannot_be_saved_name_the_stage(ours) -> None:
    with pytest.raises(NonFiniteError, match="decoder"):
        ours.decode(torch.full((1, 4, 4, 4), float("nan")))
    ours.encoder.conv_in.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="encoder"):
        ours.encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("shape", [(1, 3, 33, 32), (1, 3, 32, 36), (1, 1, 32, 32), (3, 32, 32)])
def test_pictures_of_another_shape_are_refused(ours, shape) -> None:
    with pytest.raises(UsageError, match="shape"):
        ours.encode(torch.zeros(shape))


def test_latents_of_another_shape_are_refused(ours) -> None:
    with pytest.raises(UsageError, match="shape"):
        ours.decode(torch.zeros(1, 16, 8, 8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scaling_factor": "5"},
        {"scaling_factor": 0},
        {"scaling_factor": 10**400},
        {"shift_factor": "0.1"},
        {"latents_mean": [0.0]},
        {"latents_std": [1.0, 1.0, 1.0, 0.0]},
        {"latent_channels": 4.0},
        {"layers_per_block": 0},
        {"block_out_channels": []},
        {"block_out_channels": [32, "64"]},
        {"norm_num_groups": 7},
        {"sample_size": -64},
        {"sample_size": []},
        {"force_upcast": "yes"},
        {"act_fn": "mish"},
        {"down_block_types": ["AttnDownEncoderBlock2D"] * 4},
        {"up_block_types": ["UpDecoderBlock2D"]},
    ],
)
def test_settings_are_judged_before_weights_are_read(sd_folder, tmp_path, wrong) -> None:
    """A scaling factor that is a text failed only when all steps were computed."""
    settings = json.loads((sd_folder / "vae" / "config.json").read_text()) | wrong
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(FileError) as error:
        Autoencoder.from_pretrained(tmp_path)
    assert next(iter(wrong)) in f"{error.value.what} {error.value.why}"


def test_unknown_settings_and_classes_are_refused_by_name(sd_folder, tmp_path) -> None:
    with pytest.raises(UsageError, match="latent_chanels") as error:
        AutoencoderConfig.from_dict({"latent_chanels": 4})
    assert "latent_channels" in error.value.hint
    config = (sd_folder / "vae" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("AutoencoderKL", "AutoencoderTiny"))
    with pytest.raises(FileError, match="AutoencoderTiny"):
        Autoencoder.from_pretrained(tmp_path)
