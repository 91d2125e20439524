"""A conditional random field as a refiner: mean-field inference with the two kernels of DenseCRF, over windows.

The model is that of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", 2011. The marginals ``Q`` of the pixels ``i`` start as the softmax of the scores ``S``, and are then

    Q_i = softmax(S_i + Σ_m w_m Σ_j k_m(i, j) Q_j)

a number of times, which is their update with the Potts model up to a constant of each pixel. The appearance kernel is
``exp(-|p_i - p_j|² / 2θα² - |I_i - I_j|² / 2θβ²)`` of positions ``p`` and colours ``I``, the smoothness kernel
``exp(-|p_i - p_j|² / 2θγ²)``. Each is divided by ``sqrt(Σ_j k(i, j) Σ_i k(i, j))``, and includes the pixel itself, as
in the authors' second code and in pydensecrf.

This is **not** the inference of that paper, which sums over all pixels with a permutohedral lattice: ``j`` runs over a
window of blocks of pixels, as in Teichmann and Cipolla, "Convolutional CRFs for Semantic Segmentation", 2018.

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size, ``h w`` size of the refined map, ``y x`` its size in blocks,
``T`` pixels of a window.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32, probabilities, resize_bilinear, spatial_size
from ovenet.models.interfaces import Backbone, SegOutput
from ovenet.models.precision import without_autocast
from ovenet.models.registry import SEEDS
from ovenet.models.seeds.refiner import Refiner, require_settings
from ovenet.structures import OVeNetOutput


@SEEDS.register("crf")
class WindowedCRF(Refiner):
    """Refines the final scores by mean-field inference with the image's colours; only the kernels' weights are learned.

    The defaults of weights and θ are those of DeepLab v2 (Chen et al., 2016) with ResNet-101 on Pascal VOC, as
    deeplab-pytorch has them; they were chosen for the scores of a network. The example of pydensecrf, and ConvCRF, have
    10, 3, 80, 13 and 3 in the order of the arguments, that of the authors' own code 10, 3, 60, 20 and 3.
    `num_iterations`, `window` and blocks of 4x4 pixels (`stride` times `blur`) are ConvCRF's: a window reaches 20
    pixels to each side, however large θα is. DeepLab has 10 iterations; ConvCRF uses neither θα nor a normalisation
    unless asked to.

    Args:
        backbone: the model's backbone, whose normalisation of the image is undone.
        appearance_weight: initial weight of the appearance kernel; its logarithm is learned.
        smoothness_weight: initial weight of the smoothness kernel; its logarithm is learned.
        theta_alpha: standard deviation of the appearance kernel over positions, in pixels of the image.
        theta_beta: standard deviation of the appearance kernel over each colour, in levels from 0 to 255.
        theta_gamma: standard deviation of the smoothness kernel over positions, in pixels of the image.
        num_iterations: updates of the marginals; 0 leaves the scores as they are.
        window: blocks along each side of a window, an odd number.
        blur: pixels of the refined map along each side of a block.
        stride: the image's size over that of the refined map.
        align_corners: convention of resizing scores and image to the refined map.

    Raises:
        UserError: a setting is out of range.
    """

    color_mean: Tensor
    color_std: Tensor
    appearance_distances: Tensor
    smoothness_distances: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        appearance_weight: float = 4.0,
        smoothness_weight: float = 3.0,
        theta_alpha: float = 67.0,
        theta_beta: float = 3.0,
        theta_gamma: float = 1.0,
        num_iterations: int = 5,
        window: int = 11,
        blur: int = 2,
        stride: int = 2,
        align_corners: bool = True,
    ):
        super().__init__()
        require_settings(
            ("APPEARANCE_WEIGHT", appearance_weight, appearance_weight > 0, "more than 0"),
            ("SMOOTHNESS_WEIGHT", smoothness_weight, smoothness_weight > 0, "more than 0"),
            ("THETA_ALPHA", theta_alpha, theta_alpha > 0, "more than 0 (pixels)"),
            ("THETA_BETA", theta_beta, theta_beta > 0, "more than 0 (levels from 0 to 255)"),
            ("THETA_GAMMA", theta_gamma, theta_gamma > 0, "more than 0 (pixels)"),
            ("NUM_ITERATIONS", num_iterations, num_iterations >= 0, "at least 0"),
            ("WINDOW", window, window >= 1 and window % 2 == 1, "an odd number of at least 1"),
            ("BLUR", blur, blur >= 1, "at least 1"),
            ("STRIDE", stride, stride >= 1, "at least 1"),
        )
        self.theta_beta = theta_beta
        self.num_iterations, self.window, self.blur, self.stride = num_iterations, window, blur, stride
        self.align_corners = align_corners
        # A step of Adam is as long for any parameter: in logarithms it changes a large weight as much as a small one.
        self.log_weights = nn.Parameter(torch.tensor([appearance_weight, smoothness_weight]).log())
        if backbone.in_channels != 3:
            raise UserError(f"the seed crf compares colours, and the images have {backbone.in_channels} channels")
        normalization = backbone.normalization
        for name, values in (("color_mean", normalization.mean), ("color_std", normalization.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        spacing = stride * blur
        for name, theta in (("appearance", theta_alpha), ("smoothness", theta_gamma)):
            distances = _squared_distances(window) * (spacing / theta) ** 2
            self.register_buffer(f"{name}_distances", distances, persistent=False)

    def features(self, maps: list[Tensor], decoded: SegOutput) -> None:
        """Nothing: scores and image are enough."""

    def forward(self, features: None, decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """See `Refiner.forward`; the refined scores are the logarithm of the marginals.

        Raises:
            UserError: the head predicts embeddings, whose size is not that of the refined scores.
        """
        if decoded.embedding is not None:
            raise UserError("MODEL.SEED.NAME crf does not go with MODEL.HEAD.EMBEDDING; leave one of them away")
        with without_autocast(images.device):
            initial = tuple(_logits(scores, decoded) for scores in decoded.scores)
            height, width = ((n + self.stride - 1) // self.stride for n in images.shape[-2:])
            unary = resize_bilinear(initial[-1], (height, width), align_corners=self.align_corners)
            kernels = self.kernels(images, (height, width))
            weights = self.log_weights.exp()
            weighted = _weighted(weights.detach(), kernels)
            logits = unary
            for _ in range(self.num_iterations):
                logits = unary + self.messages(logits.softmax(dim=1), weights, weighted, kernels)
            refined = logits.log_softmax(dim=1)
        return OVeNetOutput(initial, (), (*initial[:-1], refined), queries=decoded.queries)

    @torch.no_grad()
    def kernels(self, images: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """The normalised kernels ``(B or 1, T, y, x)`` for images ``(B, 3, H, W)`` and a refined map of a size."""
        colors = at_least_float32(images) * self.color_std + self.color_mean
        colors = resize_bilinear(colors, size, align_corners=self.align_corners)
        blocks = _mean_of_blocks(colors, self.blur) / self.theta_beta
        near = _neighbours(blocks, self.window).sub_(blocks.unsqueeze(2)).square_().sum(dim=1)
        kernels = ((-0.5 * (near + self.appearance_distances)).exp(), (-0.5 * self.smoothness_distances).exp())
        inside = _neighbours(torch.ones_like(blocks[:1, :1]), self.window)[:, 0]
        return [_normalised(kernel * inside, self.window) for kernel in kernels]

    def messages(self, marginals: Tensor, weights: Tensor, weighted: Tensor, kernels: list[Tensor]) -> Tensor:
        """The weighted sum ``(B, K, h, w)`` of the neighbours' marginals.

        Args:
            marginals: ``(B, K, h, w)``.
            weights: ``(2,)`` of the kernels.
            weighted: ``(B, T, y, x)``, the sum of the kernels times their weights.
            kernels: from `kernels`, for the gradient.
        """
        blocks = _mean_of_blocks(marginals, self.blur)
        if torch.is_grad_enabled():
            summed = _Messages.apply(blocks, weights, weighted, self.window, *kernels)
        else:
            summed = _filtered(blocks, weighted, self.window)
        if self.blur > 1:
            summed = F.interpolate(summed, scale_factor=float(self.blur), mode="bilinear", align_corners=False)
        height, width = spatial_size(marginals)
        return summed[..., :height, :width]


class _Messages(torch.autograd.Function):
    """`_filtered` by the weighted kernels. As these are symmetric, the gradient is filtered by the same kernels."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, weighted: Tensor, window: int, *kernels: Tensor) -> Tensor:
        ctx.save_for_backward(values, weights, *kernels)
        ctx.window = window
        return _filtered(values, weighted, window)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weights, *kernels = ctx.saved_tensors
        filtered = [_filtered(gradient, kernel, ctx.window) for kernel in kernels]
        of_weights = torch.stack([(one * values).sum() for one in filtered])
        return _weighted(weights, filtered), of_weights.to(weights.dtype), None, None, *(None for _ in kernels)


def _logits(scores: Tensor, decoded: SegOutput) -> Tensor:
    if decoded.score_kind == "logits":
        return at_least_float32(scores)
    scores = probabilities(scores, decoded.score_kind)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def _squared_distances(window: int) -> Tensor:
    """Squared distance ``(T, 1, 1)`` of each pixel of a window from its centre, row by row."""
    squares = (torch.arange(window, dtype=torch.float32) - window // 2).square()
    return (squares[:, None] + squares).view(-1, 1, 1)


def _mean_of_blocks(values: Tensor, side: int) -> Tensor:
    """Means ``(B, C, y, x)`` of square blocks; the last row and column are repeated to fill theirs."""
    if side == 1:
        return values
    height, width = spatial_size(values)
    return F.avg_pool2d(F.pad(values, (0, -width % side, 0, -height % side), mode="replicate"), side)


def _neighbours(values: Tensor, window: int) -> Tensor:
    """The pixels ``(B, C, T, y, x)`` of each pixel's window; zero outside the map."""
    batch, channels, height, width = values.shape
    return F.unfold(values, window, padding=window // 2).view(batch, channels, -1, height, width)


def _normalised(kernel: Tensor, window: int) -> Tensor:
    """The kernel ``(B, T, y, x)`` over the root of its sums at both of its pixels; a pixel is its own neighbour."""
    scale = kernel.sum(dim=1, keepdim=True).rsqrt()
    return kernel * scale * _neighbours(scale, window)[:, 0]


def _weighted(weights: Tensor, maps: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    appearance, smoothness = (weight * values for weight, values in zip(weights.unbind(), maps, strict=True))
    return appearance + smoothness


def _filtered(values: Tensor, kernel: Tensor, window: int) -> Tensor:
    """Sum of each pixel's window, weighted by its kernel.

    Rows are laid end to end with zeros between them, so that a neighbour is at a fixed distance along one axis: a pass
    over contiguous memory for each pixel of the window, fifteen times as fast as unfolding the map on a CPU.

    Args:
        values: ``(B, K, y, x)``.
        kernel: ``(B, T, y, x)``, zero for neighbours outside the map.
        window: side of the window in pixels.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # exporters take minutes for hundreds of operations
        return (_neighbours(values, window) * kernel.unsqueeze(1)).sum(dim=2)
    reach = window // 2
    height, width = spatial_size(values)
    length = height * (width + 2 * reach) - 2 * reach  # from the first to the last pixel
    rows = F.pad(values, (reach, reach, reach, reach)).flatten(2)
    kernel = F.pad(kernel, (0, 2 * reach)).flatten(2)[..., :length]
    total = torch.zeros_like(rows[..., :length])
    for index in range(window * window):
        start = index // window * (width + 2 * reach) + index % window
        total = total.addcmul_(kernel[:, index : index + 1], rows[..., start : start + length])
    return F.pad(total, (0, 2 * reach)).unflatten(2, (height, width + 2 * reach))[..., :width]
