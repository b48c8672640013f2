"""Shifts, rotates and scales a batch of images at random; gives floats in 0..255, with the border pixels repeated.

The random numbers are drawn on the CPU, so that they are the same for every device.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

SHIFT_GROUP = 16  # consecutive images of a batch that share a shift: copying each image by itself would be slower


def random_shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Shift each group of images by a whole number of pixels, up to `pixels` in each direction."""
    height, width = images.shape[2:]
    padded = functional.pad(images.float(), [pixels] * 4, mode="replicate")
    offsets = torch.randint(2 * pixels + 1, (-(-len(images) // SHIFT_GROUP), 2), generator=generator).tolist()
    groups = zip(padded.split(SHIFT_GROUP), offsets, strict=True)
    return torch.cat([group[:, :, top : top + height, left : left + width] for group, (top, left) in groups])


def random_affine(images: Tensor, degrees: float, zoom: float, generator: Generator) -> Tensor:
    """Rotate each image by up to `degrees` and scale it by up to the fraction `zoom`, in both directions."""
    random = torch.rand(2, len(images), generator=generator) * 2 - 1
    angle, scale = random[0] * math.radians(degrees), 1 + random[1] * zoom
    # The last bit of MKL's cos and sin depends on the CPU's maker; rounding from double precision removes it.
    cosine, sine = angle.double().cos().float() / scale, angle.double().sin().float() / scale
    zero = torch.zeros_like(angle)
    matrices = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    grid = functional.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
