"""The CLIP text Transformer that turns token ids into text for the UNet.

Shapes: B batch, T text tokens, H heads, d width of a head, D width, P projection width.

One class serves SD 1.x (ViT-L), SD 2.x (OpenCLIP-H), both encoders of SDXL (ViT-L and OpenCLIP-bigG
with projection) and the embedded model. Parameter names are the published ones. Architecture:
Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdcore.attention import AttentionLayer
from sdcore.attention_inputs import as_real, causal_mask, describe_tensor, padding_mask
from sdcore.checks import as_int, has_type
from sdcore.errors import UsageError
from sdcore.files.component import Component
from sdcore.text.config import CLIPTextConfig


def quick_gelu(x: Tensor) -> Tensor:
    """GELU approximated by a sigmoid, as OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TextEncoding(NamedTuple):
    """What a text encoder returns.

    last_hidden_state: (B, T, D), after the final LayerNorm: the text of SD 1.x and 2.x.
    hidden_states:     num_hidden_layers + 1 of (B, T, D), embeddings first, before the final
                       LayerNorm; SDXL's text is hidden_states[-2].
    pooled:            (B, D) the normalised state at the end-of-text token; (B, P) where the
                       encoder has a projection.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...]
    pooled: Tensor


class CLIPTextEmbeddings(nn.Module):
    """Token embedding plus learned absolute positions: ids (B, T) -> (B, T, D)."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class CLIPTextAttention(AttentionLayer):
    """Multi-head self-attention over the text; mask (T, T) or (B, 1, T, T), True = attend."""

    def __init__(self, config: CLIPTextConfig) -> None:
        width = config.hidden_size
        super().__init__(width, config.num_attention_heads)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(self.attend(q, k, v, mask))  #               (B, T, D)


class CLIPTextMLP(nn.Module):
    """Two linear layers with the activation between them, on each token alone."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPTextLayer(nn.Module):
    """Pre-norm Transformer encoder layer: attention, then MLP, each added to its input."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPTextAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPTextMLP(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextLayers(nn.Module):
    """The stack of layers: returns its input and the output of every layer."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CLIPTextLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return tuple(states)


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers and final LayerNorm: everything but the projection."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPTextLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class CLIPTextEncoder(Component):
    """CLIP text encoder: ids (B, T) -> TextEncoding.

    Built with the random weights that CLIP training starts from.
    """

    Config = CLIPTextConfig
    WEIGHTS_NAME: ClassVar[str] = "model"
    PUBLISHED_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = CLIPTextTransformer(config)
        if config.with_projection:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self._reset_parameters()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> TextEncoding:
        """Encode token ids.

        Args:
            ids: (B, T) integers, T <= max_position_embeddings; each row holds the end-of-text id.
            mask: (B, T), True or 1 = a real token, False or 0 = padding that no token may read.
                Stable Diffusion encodes without it: its text encoders read the padding.

        Raises:
            UsageError: ids of another rank, none, too many, or outside the vocabulary (on a CPU and
                not compiled: elsewhere the check would cost a synchronisation).
        """
        vocabulary = self.text_model.embeddings.token_embedding.num_embeddings
        check_ids(ids, mask, vocabulary, self.config.max_position_embeddings)
        x = self.text_model.embeddings(ids)  #                           (B, T, D)
        visible = causal_mask(ids.shape[1], ids.device)  #               (T, T)
        if mask is not None:
            visible = visible & padding_mask(mask)  #                    (B, 1, T, T)
        states = self.text_model.encoder(x, visible)
        last = self.text_model.final_layer_norm(states[-1])  #           (B, T, D)
        rows = torch.arange(ids.shape[0], device=ids.device)
        # learned words have ids behind the vocabulary, and are never the end of the text
        words = ids.where(ids < self.config.vocab_size, 0)
        pooled = last[rows, end_of_text(words, self.config.eos_token_id)]  # (B, D)
        if self.config.with_projection:
            pooled = self.text_projection(pooled)  #                     (B, P)
        return TextEncoding(last, states, pooled)

    def skip(self, encoding: TextEncoding, clip_skip: int) -> Tensor:
        """The text (B, T, D) of SD 1.x and 2.x with the last `clip_skip` layers left out.

        Counted as diffusers does: 0 is `last_hidden_state`, 1 is the penultimate layer's output
        (hidden_states[-2]), and so on; the final LayerNorm is applied. (Other programs count from
        1: their "CLIP skip 2" is 1 here. SDXL takes hidden_states[-2] without the LayerNorm.)
        """
        check_clip_skip(clip_skip, self.config.num_hidden_layers)
        return self.text_model.final_layer_norm(encoding.hidden_states[-(clip_skip + 1)])

    @staticmethod
    def published_name(key: str) -> str | None:
        """What this class calls the parameter that a file calls `key`; None: no weight at all.

        | written by                                 | keys in the file                          |
        |--------------------------------------------|-------------------------------------------|
        | transformers 4, CLIPTextModel: SD 1.x, 2.x | text_model.*                              |
        | the same before 4.31                       | text_model.*, and the constant            |
        |                                            | text_model.embeddings.position_ids        |
        | transformers 5, CLIPTextModel              | embeddings.*, encoder.*, final_layer_norm.* |
        | transformers 4, 5, ...WithProjection: SDXL | text_model.*, text_projection.weight      |
        | sdcore; transformers 5 reads these too     | text_model.*, text_projection.weight      |
        """
        if key in ("text_model.embeddings.position_ids", "embeddings.position_ids"):
            return None
        bare = key.startswith(("embeddings.", "encoder.", "final_layer_norm."))
        return f"text_model.{key}" if bare else key

    @torch.no_grad()
    def _reset_parameters(self) -> None:
        """Initial weights of CLIP training (Radford et al. 2021, section 2.4, and its code)."""
        width, layers = self.config.hidden_size, self.config.num_hidden_layers
        into_residual = width**-0.5 * (2 * layers) ** -0.5
        nn.init.normal_(self.text_model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(self.text_model.embeddings.position_embedding.weight, std=0.01)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out_proj.weight", "fc2.weight")):
                nn.init.normal_(parameter, std=into_residual)
            elif name.endswith(("_proj.weight", "text_projection.weight")):
                nn.init.normal_(parameter, std=width**-0.5)
            elif name.endswith("fc1.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5)


def end_of_text(ids: Tensor, eos_token_id: int) -> Tensor:
    """Position (B,) of the first end-of-text token in ids (B, T); see CLIPTextConfig on id 2."""
    if eos_token_id == 2:
        return ids.to(torch.int).argmax(dim=-1)
    return (ids == eos_token_id).to(torch.int).argmax(dim=-1)


def check_ids(ids: Tensor, mask: Tensor | None, vocabulary: int, longest: int) -> None:
    """UsageError unless a text encoder of `vocabulary` tokens can read ids (B, T), T <= longest."""
    check_vocabulary(ids, vocabulary)
    if not ids.shape[1]:
        raise UsageError(
            "There are no tokens to read.",
            f"The ids have the shape {tuple(ids.shape)}.",
            "Call the tokenizer: an empty text has a begin and an end token too.",
        )
    if ids.shape[1] > longest:
        raise UsageError(
            f"{ids.shape[1]} tokens are too long for this text encoder.",
            f"It has {longest} positions.",
            f"Cut the prompt to {longest} tokens, or encode it in chunks.",
        )
    if mask is not None:
        as_real(mask, ids)


def check_vocabulary(ids: Tensor, vocabulary: int) -> None:
    """UsageError unless ids are whole numbers below `vocabulary` (B, any number of them)."""
    kinds = torch.int64, torch.int32
    if not has_type(ids, Tensor) or ids.ndim != 2 or ids.dtype not in kinds:
        why = f"They are {describe_tensor(ids)}."
        hint = "Call the tokenizer; ids.long() of shorter numbers."
        raise UsageError("Token ids must be whole numbers (B, T).", why, hint)
    seen = ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling()
    if seen and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise UsageError(
            f"Token ids from {ids.min()} to {ids.max()} are outside the vocabulary.",
            f"This model knows {vocabulary} tokens.",
            "Use the tokenizer that belongs to it.",
        )


def check_words(words: Tensor, vocabulary: int, rows: int) -> None:
    """UsageError unless words (rows, any number of them) can go on the texts of a state."""
    check_vocabulary(words, vocabulary)
    if len(words) != rows:
        raise UsageError(
            f"There are words for {len(words)} texts.",
            f"The state is that of {rows}.",
            "Give a row of words for each text, or pick those rows of the state.",
        )


def check_clip_skip(clip_skip: int, layers: int) -> None:
    """UsageError unless a text encoder of so many layers can leave the last `clip_skip` out."""
    if as_int(clip_skip, 0, layers) is None:
        raise UsageError(
            f"clip_skip={clip_skip!r} cannot be used.",
            f"This text encoder has {layers} layers.",
            f"Choose 0 to {layers}; 1 is the penultimate layer.",
        )
