"""A model from a diffusers component folder (config.json and safetensors) and back, strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sdcore.errors import FileError, UsageError, name_some, warn
from sdcore.files.folder import component_folder, refuse_custom_code
from sdcore.files.header import WeightFile, find_weights
from sdcore.files.jsonfile import is_list, read_json
from sdcore.files.layout import CONFIG_NAME, check_variant
from sdcore.files.saving import save_component
from sdcore.files.weights import read_tensors


class Component(nn.Module):
    """A network that diffusers or transformers keep in a folder of its own.

    `Config` has `from_dict` (refuses by name what it does not know) and `to_dict`; the instance has
    its config at `.config`. PUBLISHED_CLASSES are the names that config.json gives to what this
    class reads. A class may also have `published_name(key) -> str | None`, which says what the
    parameter is called here that a file calls `key`; None leaves out a key that holds no weights.
    """

    Config: ClassVar[Any]
    WEIGHTS_NAME: ClassVar[str]
    PUBLISHED_CLASSES: ClassVar[tuple[str, ...]] = ()
    config: Any

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        variant: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        allow_extra: bool = False,
    ) -> Self:
        """The network of a diffusers folder; every key and shape must fit, see load_component."""
        return load_component(
            cls,
            folder,
            subfolder=subfolder,
            dtype=dtype,
            device=device,
            variant=variant,
            revision=revision,
            offline=offline,
            allow_extra=allow_extra,
        )

    def save_pretrained(
        self, folder: str | Path, *, variant: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write config.json and weights that diffusers or transformers open, see save_component."""
        save_component(self, folder, variant=variant, dtype=dtype)


_RESTORE = "Get the file again from where the model came from."
_COUNT_LIMIT = 512  # of layers or blocks in a list; the largest that is known of has 70

ModelT = TypeVar("ModelT", bound=Component)


def load_component(
    cls: type[ModelT],
    folder: str | Path,
    *,
    subfolder: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    allow_extra: bool = False,
) -> ModelT:
    """A model with the weights of a folder, in eval mode.

    Args:
        cls: a `Component`, such as UNet or CLIPTextEncoder.
        folder: a local folder, or a hub name such as `owner/model`.
        subfolder: the component's folder inside it, such as `unet`.
        dtype: of the weights in memory, whatever the file has; None is torch.float32.
        variant: word in the weight file's name: `fp16` reads `*.fp16.safetensors`.
        revision, offline: for a model on the hub, see `sdcore.files.folder.find_model`.
        allow_extra: leave out tensors that the network does not have, with a warning.

    Raises:
        FileError: a file is missing, damaged or not what its name says, the configuration is not
            one of this class, or a weight is missing, unknown or of another shape.
        UsageError: an argument that cannot be used.
    """
    check_variant(variant)
    dtype, device = check_placement(dtype or torch.float32, device)
    folder = component_folder(
        folder, subfolder, cls.WEIGHTS_NAME, variant=variant, revision=revision, offline=offline
    )
    model = build_without_memory(cls, folder / CONFIG_NAME)
    files = find_weights(folder, cls.WEIGHTS_NAME, variant)
    names = _match_names(cls, files, model, allow_extra)
    state: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in read_tensors(file, device, dtype).items():
            if (name := names[key]) is not None:
                state[name] = tensor
    model.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def component_settings(cls: type[Component], folder: str | Path) -> dict[str, Any]:
    """The config.json of a component's folder, or of one on the hub. Raises FileError."""
    return read_json(component_folder(folder, None, cls.WEIGHTS_NAME) / CONFIG_NAME)


def check_placement(
    dtype: torch.dtype, device: str | torch.device
) -> tuple[torch.dtype, torch.device]:
    """Type and device of weights, refused by a UsageError where they cannot be used."""
    real = isinstance(dtype, torch.dtype) and dtype.is_floating_point  # pyright: ignore[reportUnnecessaryIsInstance]
    if not real:
        hint = "Use torch.float32, torch.bfloat16 or torch.float16."
        raise UsageError(f"The dtype {dtype} cannot be used.", "Weights are real numbers.", hint)
    try:
        return dtype, torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        # What follows the first sentence lists torch's own backends.
        why = str(error).splitlines()[0].split(". ")[0].removesuffix(".")
        raise UsageError(f"The device {device!r} cannot be used.", f"{why}.", "Use cpu.") from error


def build_without_memory(
    cls: type[ModelT], path: Path, changes: Mapping[str, Any] | None = None
) -> ModelT:
    """The model that a config.json describes, on the meta device: structure and shapes alone.

    Args:
        changes: settings that take the place of those in the file.

    Raises:
        FileError: the file is missing or damaged, or describes no model of this class.
    """
    settings = {**read_json(path), **(changes or {})}
    refuse_custom_code(settings, path)
    _check_kind(cls, settings, path)
    _check_counts(settings, path)
    try:
        config = cls.Config.from_dict(settings)
        with torch.device("meta"), _NothingDrawn():
            return cls(config)
    except UsageError as error:
        raise FileError(f"{path} cannot be used. {error.what}", error.why, error.hint) from error
    except Exception as error:  # there is no telling what settings of any kind lead to
        why = f"No {cls.__name__} can be built from it: {error!r:.200}."
        raise FileError(f"{path} cannot be used.", why, _RESTORE) from error


class _NothingDrawn(TorchFunctionMode):
    """First values of weights left out: without memory there are none.

    On the meta device torch would draw them by code that it first has to import, with its
    compiler: 2 s in all.
    """

    _DRAWS = frozenset({Tensor.normal_, Tensor.uniform_})

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return args[0] if func in self._DRAWS else func(*args, **kwargs)


def _check_kind(cls: type[Component], settings: Mapping[str, Any], path: Path) -> None:
    """Refuse the settings of another network by what they say they are."""
    kind: Any = settings.get("_class_name") or settings.get("architectures")
    kind = _as_list(kind)[0] if kind else None
    if not isinstance(kind, str) or not cls.PUBLISHED_CLASSES or kind in cls.PUBLISHED_CLASSES:
        return  # one that does not say so is judged by its settings
    raise FileError(
        f"{path.parent} holds a {kind:.80}.",
        f"{cls.__name__} reads {' or '.join(cls.PUBLISHED_CLASSES)}.",
        "Name another folder.",
    )


def _check_counts(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse numbers of layers or blocks that would be built without end."""
    for key, value in settings.items():
        values = _as_list(value)
        if "layers" in key:
            flat = [n for each in values for n in _as_list(each)]
            values = [*flat, len(flat)]
        else:
            values = [len(values)]
        largest = max((n for n in values if isinstance(n, int | float)), default=0)
        if largest > _COUNT_LIMIT:
            why = f"{key} is {value!r:.80}: more than {_COUNT_LIMIT} layers or blocks."
            raise FileError(f"{path} cannot be used.", why, _RESTORE)


def _as_list(value: Any) -> list[Any]:
    return value if is_list(value) else [value]


def _match_names(
    cls: type[nn.Module], files: list[WeightFile], model: nn.Module, allow_extra: bool
) -> dict[str, str | None]:
    """File key -> parameter name, after checking that names and shapes agree exactly."""
    published: Callable[[str], str | None] = getattr(cls, "published_name", lambda key: key)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    names: dict[str, str | None] = {}
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for key, shape in file.shapes.items():
            name = published(key)
            if key in names or name in found:
                raise FileError(
                    f"{file.path} gives {key:.120} twice.",
                    "Two tensors of the model would have one name.",
                    "Download or convert the model again.",
                )
            names[key] = name
            if name is not None and key in file.integers:
                raise fault_of_integers(file, [key])
            if name is not None:
                found[name] = shape
    unknown = [name for name in found if name not in expected]
    known = {name: shape for name, shape in found.items() if name in expected}
    place = files[0].path if len(files) == 1 else files[0].path.parent
    faults = list_faults(expected, known if allow_extra else found)
    if faults:
        hint = "Check that config.json and the weights belong to the same model."
        if not list_faults(expected, known):
            hint = "If you know that it is of no use, leave it out: allow_extra=True."
        what = f"The weights in {place} do not fit this {cls.__name__}."
        raise FileError(what, f"{'; '.join(faults)}.", hint)
    if unknown:
        count = f"{len(unknown)} tensor{'s' * (len(unknown) > 1)}"
        warn(f"{place}: {count} that it does not have, left out: {name_some(unknown)}")
    return {key: name if name in expected else None for key, name in names.items()}


def fault_of_integers(file: WeightFile, names: Sequence[str]) -> FileError:
    """The error for whole numbers where weights belong: a quantised file, which may be sound."""
    types = ", ".join(sorted({file.types[name] for name in names}))
    what = f"{file.path} holds whole numbers ({types}) in {names[0]:.120}"
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    why = "Weights are real numbers; a file may hold codes for them, in a form that is not read."
    hint = "Take the same model in fp16, bf16, fp32, fp8 or GGUF."
    return FileError(f"{what}{more}.", why, hint)


def list_faults(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What keeps the weights `found` (name -> shape) from being exactly those expected."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "wrong shape": shapes}
    return [f"{len(names)} {kind}: {name_some(names)}" for kind, names in kinds.items() if names]
