"""TarFlow: a flow of causal transformers over the patches of an image (arXiv:2412.06329).

No convolution, no coupling, no scales: log p(x) is exact, in one parallel pass over all patches.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oodflow.errors import UserError
from oodflow.models.form import current_form, run
from oodflow.models.glow import standard_normal_log_prob
from oodflow.models.likelihood import LEVELS, LikelihoodModel

__all__ = ["TarFlow", "TransformerBlock", "cut_tokens", "join_tokens"]

HEAD = 64
"""Width of an attention head; a transformer that is narrower has one head."""

EXPANSION = 4
"""Width of an MLP's hidden layer in widths of the transformer."""

POSITION_STD = 0.01
"""Standard deviation of the positions' initial values."""


DRAWS = 20
"""How often an image that is not finite is drawn again."""


def cut_tokens(images: Tensor, patch: int) -> Tensor:
    """N×C×H×W → N×T×(C·p²): the patches in raster order, each channel by channel.

    >>> cut_tokens(torch.arange(16).view(1, 1, 4, 4), 2)[0, :2].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    cut = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def join_tokens(tokens: Tensor, patch: int) -> Tensor:
    """The square images that :func:`cut_tokens` took apart."""
    side = math.isqrt(tokens.shape[1])
    cut = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, (side, side))
    return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x) on N×T×features, on a CPU as a 1×1 convolution.

    PyTorch leaves products of matrices and convolutions to different libraries, and on some CPUs
    that of the convolutions takes half the time, unless there is a single token. It knows no
    float64.
    """
    is_faster = x.device.type == "cpu" and x.dtype != torch.float64 and x.shape[1] > 1
    if current_form() == "plain" or not is_faster:
        return layer(x)
    # The same numbers as images of 1×T pixels in channels_last.
    images = x[:, None].permute(0, 3, 1, 2)
    after = F.conv2d(images, layer.weight[:, :, None, None], layer.bias)
    # Squeezed, since the gradient of an index is written into zeros.
    return after.permute(0, 2, 3, 1).squeeze(1)


class Memory:
    """Keys and values, N×heads×length×head, of the tokens that a layer has seen so far."""

    def __init__(self, like: Tensor, heads: int, length: int) -> None:
        """Room for ``length`` tokens of N sequences ``like`` N×…×width."""
        shape = (2, len(like), heads, length, like.shape[-1] // heads)
        self.stored = like.new_empty(shape)
        self.length = 0

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of the next tokens, and return all."""
        start, self.length = self.length, self.length + key.shape[2]
        for stored, new in zip(self.stored, (key, value), strict=True):
            stored[:, :, start : self.length] = new
        key, value = self.stored[:, :, :, : self.length]
        return key, value


class TransformerLayer(nn.Module):
    """h + attention(norm h), then h + MLP(norm h), on N×T×width; no token sees a later one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(width // HEAD, 1)
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, EXPANSION * width)
        self.contract = nn.Linear(EXPANSION * width, width)

    def forward(self, h: Tensor, memory: Memory | None = None) -> Tensor:
        """With a memory, ``h`` is the one token after those that are in it, N×1×width."""
        attended = self._attend(_linear(self.query_key_value, self.norm1(h)), memory)
        h = h + _linear(self.merge, attended)
        return h + _linear(self.contract, F.gelu(_linear(self.expand, self.norm2(h))))

    def _attend(self, query_key_value: Tensor, memory: Memory | None) -> Tensor:
        split = query_key_value.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        if memory is not None:
            key, value = memory.extend(key, value)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=memory is None)
        return attended.transpose(1, 2).flatten(2)


class TransformerBlock(nn.Module):
    """z_1 = x_1, z_t = (x_t − b_t)·exp(−a_t), where a_t, b_t depend on x_1 … x_{t−1}.

    x and z are N×T×d. h = W_in x + position goes through the layers, and W_out h of a token is the
    next one's a (first half) and b. log|det| = −Σ a, N. W_out is zero at first: then z = x.
    """

    def __init__(self, tokens: int, features: int, width: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.position = nn.Parameter(POSITION_STD * torch.randn(tokens, width))
        self.layers = nn.ModuleList(TransformerLayer(width) for _ in range(layers))
        self.leave = nn.Linear(width, 2 * features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log|det|."""
        # The last token too, though none depends on it: kernels like even lengths.
        h = _linear(self.enter, x) + self.position
        for layer in self.layers:
            h = run(layer, h)
        log_scale, shift = _linear(self.leave, h)[:, :-1].to(x.dtype).chunk(2, dim=2)
        z = (x[:, 1:] - shift) * (-log_scale).exp()
        return torch.cat((x[:, :1], z), dim=1), -log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, on_token: Callable[[], None] = lambda: None) -> Tensor:
        """x of z, token by token; each layer keeps the keys and values of those that are known."""
        known = [z[:, 0]]
        memories = [
            Memory(self.position.expand(len(z), -1, -1), layer.heads, len(self.position))  # type: ignore[arg-type]
            for layer in self.layers
        ]
        for token, position in zip(z[:, 1:].unbind(1), self.position[:-1], strict=True):
            h = (self.enter(known[-1]) + position)[:, None]
            for layer, memory in zip(self.layers, memories, strict=True):
                h = layer(h, memory)
            log_scale, shift = self.leave(h[:, 0]).to(z.dtype).chunk(2, dim=1)
            known.append(token * log_scale.exp() + shift)
            on_token()
        return torch.stack(known, dim=1)


class TarFlow(LikelihoodModel):
    """Blocks of causal transformers over patches, in alternating order (arXiv:2412.06329).

    The network's input is v = 2(x + noise)/256 − 1, so log p(x) = log p(v) − D ln 128. Its patches
    of ``patch``×``patch`` pixels are T = (size/patch)² tokens, which the blocks read from the first
    to the last, then from the last to the first, and so on. All tokens of the last block's output z
    are N(0, 1), and log p(v) = log N(z; 0, I) + Σ log|det| of the blocks. There are no scales: N×1.

    ``depth`` blocks have ``layers`` layers of ``width`` each. The paper's model for likelihoods has
    patches of 2, width 768, 8 blocks of 8 layers.

    Raises :class:`UserError` for patches that do not tile the image, and for a width that is no
    multiple of 64, unless it is smaller.

    >>> _ = torch.manual_seed(0)
    >>> flow = TarFlow(channels=1, patch=8, depth=2, layers=1, width=16)
    >>> images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    >>> latents, contributions = flow.encode(flow.preprocess(images, 0.5))
    >>> latents[0].shape, contributions.shape
    (torch.Size([2, 1024]), torch.Size([2, 1]))
    """

    scales = 1

    def __init__(
        self,
        channels: int,
        patch: int = 2,
        depth: int = 8,
        layers: int = 8,
        width: int = 768,
        size: int = 32,
    ) -> None:
        super().__init__()
        if min(channels, depth, layers, width) < 1:
            raise UserError(
                f"no TarFlow of {depth} blocks of {layers} layers of width {width} for images of "
                f"{channels} channels"
            )
        if patch < 1 or size % patch or patch == size:
            raise UserError(
                f"TarFlow's patches of {patch}×{patch} do not tile {size}×{size} images"
            )
        if width > HEAD and width % HEAD:
            raise UserError(f"TarFlow's heads are {HEAD} wide: hidden has to be a multiple of it")
        self.image_shape = (channels, size, size)
        self.patch = patch
        tokens, features = (size // patch) ** 2, channels * patch**2
        self.blocks = nn.ModuleList(
            TransformerBlock(tokens, features, width, layers) for _ in range(depth)
        )

    def preprocess(self, images: Tensor, noise: Tensor | float) -> Tensor:
        """v = 2(x + noise)/256 − 1 in the parameters' dtype."""
        return (images.to(next(self.parameters()).dtype) + noise) / (LEVELS / 2) - 1

    def transform(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latent, N×D in a list of one, and log|det|, N×1, without the levels'."""
        tokens = cut_tokens(v, self.patch)
        log_dets = []
        for block in self.blocks:
            tokens, log_det = block(tokens)
            log_dets.append(log_det)
            # The next block reads from the other end.
            tokens = tokens.flip(1)
        return [self._forwards(tokens).flatten(1)], torch.stack(log_dets, dim=1).sum(
            1, keepdim=True
        )

    def encode(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latent, N×D in a list of one, and the contribution N×1 to log p(v)."""
        latents, log_det = self.transform(v)
        return latents, standard_normal_log_prob(latents[0])[:, None] + log_det

    def terms(self, images: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor]:
        """See :meth:`LikelihoodModel.terms`."""
        latents, log_det = self.transform(self.preprocess(images, noise))
        prior = standard_normal_log_prob(latents[0])[:, None]
        return prior + log_det - math.prod(self.image_shape) * math.log(LEVELS / 2), prior

    def forward(self, images: Tensor, noise: Tensor | float) -> Tensor:
        return self.terms(images, noise)[0]

    @torch.no_grad()
    def decode(
        self, latents: Sequence[Tensor], on_progress: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """v from its latent: the inverse of :meth:`encode`, block by block and token by token.

        ``on_progress`` hears after every token how many of how many are done.
        """
        (latent,) = latents
        tokens = self._forwards(latent.unflatten(1, (-1, self.image_shape[0] * self.patch**2)))
        total, done = len(self.blocks) * (tokens.shape[1] - 1), 0

        def on_token() -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, total)

        for block in reversed(self.blocks):
            tokens = block.inverse(tokens.flip(1), on_token)  # type: ignore[operator]
        return join_tokens(tokens, self.patch)

    def _forwards(self, tokens: Tensor) -> Tensor:
        """In raster order what the last block, or the one before it, left reversed."""
        return tokens.flip(1) if len(self.blocks) % 2 else tokens

    def draw_latents(
        self, count: int, generator: torch.Generator, temperature: float = 1.0
    ) -> list[Tensor]:
        """The latent of so many images from N(0, temperature²), in the parameters' type."""
        drawn = torch.randn(count, math.prod(self.image_shape), generator=generator)
        return [temperature * drawn.to(next(self.parameters()))]

    def sample(
        self,
        count: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """See :meth:`LikelihoodModel.sample`. An image that is not finite is drawn again.

        A young model may leave the numbers there are: a token that lies far out makes the next ones
        lie further out. UserError where that never ends.
        """
        v = self.decode(self.draw_latents(count, generator, temperature), on_progress)
        for _ in range(DRAWS):
            lost = ~v.isfinite().flatten(1).all(1)
            if not lost.any():
                break
            v[lost] = self.decode(self.draw_latents(int(lost.sum()), generator, temperature))
        else:
            raise UserError(
                f"{int(lost.sum())} of {count} images were not finite in {DRAWS} draws; "
                "lower the temperature, or train the model for longer"
            )
        return ((v + 1) * (LEVELS / 2)).floor().clamp(0, LEVELS - 1).to(torch.uint8)
