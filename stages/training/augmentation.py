"""Random changes of whole batches of images, to floats in 0..255; the edge goes on outwards.

The numbers are drawn on the CPU, and so are the same for every device.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

GROUP = 16  # neighbours in a batch that make the same move: a batch is in random order, and a copy each would cost


def random_shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Each group of images moved by whole pixels, up to `pixels` in both directions."""
    height, width = images.shape[2:]
    wider = functional.pad(images.float(), [pixels] * 4, mode="replicate")
    moves = torch.randint(2 * pixels + 1, (-(-len(images) // GROUP), 2), generator=generator).tolist()
    groups = zip(wider.split(GROUP), moves, strict=True)
    return torch.cat([group[:, :, down : down + height, right : right + width] for group, (down, right) in groups])


def random_affine(images: Tensor, degrees: float, zoom: float, generator: Generator) -> Tensor:
    """Each image turned by up to `degrees` and scaled by up to the share `zoom`, both ways."""
    draw = torch.rand(2, len(images), generator=generator) * 2 - 1
    angle, scale = draw[0] * math.radians(degrees), 1 + draw[1] * zoom
    # MKL's cos and sin differ in the last bit by the CPU's maker: in double precision that bit is lost in rounding.
    cosine, sine = angle.double().cos().float() / scale, angle.double().sin().float() / scale
    zero = torch.zeros_like(angle)
    matrices = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    matrices = matrices.to(images.device)
    where = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), where, padding_mode="border", align_corners=False)
