"""Parameters and FLOPs of the tokenizer (arXiv 2404.02905), its loss networks and its critic."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from var_scaling.accounting import Count, total
from var_scaling.config import Tokenizer, TrainedTokenizer
from var_scaling.recipe import Critic

# VGG-16 up to the last activation that LPIPS uses: widths by stage; pooling halves between stages.
VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

CLASSIFIER_STAGES = (32, 64, 128)  # widths of the feature network, a classifier


@dataclass(frozen=True)
class Layer:
    """An operation with parameters or FLOPs; `flops` are those of one image's forward pass.

    `backward` is the cost of the backward pass relative to `flops`: 2, for the gradients of inputs
    and weights, or fewer if one of them is not needed.
    """

    component: str
    parameters: int
    flops: int
    backward: int = 2


def tokenizer_layers(tokenizer: Tokenizer) -> Iterator[Layer]:
    """Every counted layer of the multi-scale VQVAE, in the order of the modules."""
    t, grid, z = tokenizer, tokenizer.pyramid.side, tokenizer.code_channels
    widths = [t.channels * multiplier for multiplier in t.multipliers]
    deepest = len(widths) - 1

    side = t.side
    yield _conv("encoder", 3, t.channels, 3, side, backward=1)  # images need no gradient
    width = t.channels
    for level, level_width in enumerate(widths):
        for _ in range(t.residual_blocks):
            yield from _residual("encoder", width, level_width, side)
            width = level_width
            if level == deepest:
                yield from _attention("encoder", width, side)
        if level < deepest:
            side //= 2
            yield _conv("encoder", width, width, 3, side)
    yield from _middle("encoder", width, side)
    yield _norm("encoder", width)
    yield _conv("encoder", width, z, 3, side)
    yield _conv("quant_convs", z, z, 3, grid)

    yield from _quantizer(t)

    yield _conv("quant_convs", z, z, 3, grid)
    yield _conv("decoder", z, width, 3, side)
    yield from _middle("decoder", width, side)
    for level in reversed(range(len(widths))):
        for _ in range(t.residual_blocks + 1):
            yield from _residual("decoder", width, widths[level], side)
            width = widths[level]
            if level == deepest:
                yield from _attention("decoder", width, side)
        if level > 0:
            side *= 2
            yield _conv("decoder", width, width, 3, side)
    yield _norm("decoder", width)
    yield _conv("decoder", width, 3, 3, side)


def tokenizer_parameters(tokenizer: Tokenizer) -> Count:
    """Trainable parameters by component."""
    counted: Counter[str] = Counter()
    for layer in tokenizer_layers(tokenizer):
        counted[layer.component] += layer.parameters
    return dict(counted)


def tokenizer_flops(tokenizer: Tokenizer) -> Count:
    """FLOPs of one image through encoder, quantizer (code search and phi) and decoder."""
    counted: Counter[str] = Counter()
    for layer in tokenizer_layers(tokenizer):
        counted[layer.component] += layer.flops
    return dict(counted)


@lru_cache(maxsize=64)  # the trials of a sweep share a tokenizer
def encoding_flops(tokenizer: Tokenizer) -> int:
    """FLOPs of encoding one image into tokens."""
    flops = tokenizer_flops(tokenizer)
    # quant_convs are two equal convolutions, one before and one after the quantiser. Encoding needs
    # phi too: each scale quantises what the scales before it, decoded, leave over.
    return flops["encoder"] + flops["quant_convs"] // 2 + flops["quantizer"]


@lru_cache(maxsize=64)
def decoding_flops(tokenizer: Tokenizer) -> int:
    """FLOPs of decoding one image's tokens into pixels."""
    flops = tokenizer_flops(tokenizer)
    # Codes are looked up, which costs no FLOPs; phi runs once for each scale.
    phi_flops = tokenizer.pyramid.scales * _phi(tokenizer).flops if tokenizer.phi_strength else 0
    return flops["decoder"] + flops["quant_convs"] // 2 + phi_flops


# Training ---------------------------------------------------------------------------------------


def tokenizer_training_flops(t: TrainedTokenizer, with_critic: bool) -> Count:
    """FLOPs of one training step on one image; `with_critic`: of a step with the critic."""
    counted: Counter[str] = Counter()
    for layer in tokenizer_layers(t):
        backward = layer.backward
        if layer.component == "quantizer" and backward == 1 and t.codebook.learns == "gradient":
            backward = 2  # the gradient passes through phi to the codes
        counted[layer.component] += (1 + backward) * layer.flops
    if t.losses.perceptual > 0:
        # Forward for both images; backward only to the reconstruction, as VGG's weights are fixed.
        # VGG: 2 forward + 1 backward. The channel weights: 1 + 1, on the squared difference.
        counted["perceptual"] = sum(
            (3 if layer.component == "vgg" else 2) * layer.flops for layer in vgg_layers(t.side)
        )
    critic = t.losses.critic
    if with_critic and critic is not None:
        first, *rest = critic_layers(critic, t.side)
        # The critic's step: forward and backward for two images; the first layer's input needs no
        # gradient: 2 × (1 + 1) there, 2 × (1 + 2) elsewhere. The tokenizer's step: one forward, and
        # backward to the image only: 1 + 1.
        counted["critic"] = 6 * first.flops + 8 * sum(layer.flops for layer in rest)
        # The adaptive weight of the critic compares two gradients of the decoder's last layer.
        counted["decoder"] += 2 * _conv("decoder", t.channels, 3, 3, t.side).flops
    return dict(counted)


def critic_steps(t: TrainedTokenizer, steps_done: int) -> int:
    """The number of steps with the critic among the first `steps_done`."""
    critic = t.losses.critic
    return 0 if critic is None else max(0, steps_done - critic_starts(critic, t.steps))


def critic_starts(critic: Critic, steps: int) -> int:
    """The first of `steps` steps with the critic."""
    return int(critic.starts * steps)


def tokenizer_train_flops(t: TrainedTokenizer, steps_done: int) -> int:
    """FLOPs of the first `steps_done` steps on the global batch, without the initial k-means."""
    plain, with_critic = (tokenizer_training_flops(t, with_critic) for with_critic in (False, True))
    # What a step with the critic costs in addition.
    critic = total(with_critic) - total(plain)
    unquantised = min(steps_done, t.codebook.starts_at)  # the first steps skip the quantizer
    per_image = steps_done * total(plain) + critic_steps(t, steps_done) * critic
    return t.batch_size * (per_image - unquantised * plain["quantizer"])


def vgg_layers(side: int) -> Iterator[Layer]:
    """LPIPS on one image: VGG-16's convolutions, then a weight for each channel."""
    width = 3
    for stage, widths in enumerate(VGG_STAGES):
        side = side // 2 if stage else side
        for stage_width in widths:
            yield _conv("vgg", width, stage_width, 3, side)
            width = stage_width
        yield Layer("calibration", width, 2 * width * side * side)


def critic_layers(critic: Critic, side: int) -> Iterator[Layer]:
    """The patch discriminator: 4 × 4 convolutions, the first `halvings` of them with stride 2."""
    width = 3
    for k in range(critic.halvings + 1):
        stage_width = critic.channels * min(2**k, 8)
        # Kernel 4, padding 1: stride 2 halves the side, stride 1 takes one pixel off.
        side = side // 2 if k < critic.halvings else side - 1
        yield _conv("critic", width, stage_width, 4, side, bias=k == 0)
        if k > 0:
            yield _norm("critic", stage_width)
        width = stage_width
    yield _conv("critic", width, 1, 4, side - 1)


def _conv(
    component: str,
    cin: int,
    cout: int,
    kernel: int,
    side: int,
    backward: int = 2,
    bias: bool = True,
) -> Layer:
    weights = cin * cout * kernel * kernel
    return Layer(component, weights + bias * cout, 2 * weights * side * side, backward)


def _norm(component: str, width: int) -> Layer:
    return Layer(component, 2 * width, 0)


def _residual(component: str, cin: int, cout: int, side: int) -> Iterator[Layer]:
    yield _norm(component, cin)
    yield _conv(component, cin, cout, 3, side)
    yield _norm(component, cout)
    yield _conv(component, cout, cout, 3, side)
    if cin != cout:
        yield _conv(component, cin, cout, 1, side)


def _attention(component: str, width: int, side: int) -> Iterator[Layer]:
    yield _norm(component, width)
    yield _conv(component, width, 3 * width, 1, side)
    # 2 x 2 L^2 width FLOPs with L = side^2 positions.
    yield Layer(component, 0, 4 * side**4 * width)  # scores and their product with the values
    yield _conv(component, width, width, 1, side)


def _middle(component: str, width: int, side: int) -> Iterator[Layer]:
    yield from _residual(component, width, width, side)
    yield from _attention(component, width, side)
    yield from _residual(component, width, width, side)


def _phi(t: Tokenizer) -> Layer:
    # backward=1: gradients of its weights, not of the codes, if these are moving averages.
    return _conv("quantizer", t.code_channels, t.code_channels, 3, t.pyramid.side, backward=1)


def _quantizer(t: Tokenizer) -> Iterator[Layer]:
    z, pyramid = t.code_channels, t.pyramid
    # Nearest-code search: distances to all codes. No gradient passes through it.
    search = 2 * pyramid.length * z * t.codebook_size
    yield Layer("quantizer", t.codebook_size * z, search, backward=0)
    phi = _phi(t)
    phis = t.phi_convolutions or pyramid.scales  # 0: a convolution for each scale
    if t.phi_strength > 0:
        yield Layer("quantizer", phis * phi.parameters, pyramid.scales * phi.flops, phi.backward)


def classifier_flops(side: int) -> int:
    """FLOPs of the convolutions in one image's forward pass through evaluation.classifier."""
    flops, width_in = 2 * 9 * 3 * CLASSIFIER_STAGES[0] * side**2, CLASSIFIER_STAGES[0]
    for width in CLASSIFIER_STAGES:
        if width != width_in:
            # 3 x 3 with padding 1 and stride 2: an odd side is rounded up.
            side = (side + 1) // 2
            flops += 2 * width_in * width * side**2  # the shortcut
        flops += 2 * 9 * (width_in + width) * width * side**2
        width_in = width
    return flops
