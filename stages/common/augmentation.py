"""Random changes of whole batches of images, on their device; the edge goes on outwards."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional


def shifted(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Each image moved by whole pixels, up to `pixels` in both directions. Keeps uint8."""
    count, channels, height, width = images.shape
    moves = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator, device=images.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    moved = images.gather(2, rows[:, None, :, None].expand(count, channels, height, width))
    return moved.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def warped(images: Tensor, degrees: float, zoom: float, generator: Generator) -> Tensor:
    """Each image turned by up to `degrees` and scaled by up to the share `zoom`, both ways. Gives floats in 0..255."""
    draw = torch.rand(2, len(images), generator=generator, device=images.device) * 2 - 1
    angle, scale = draw[0] * math.radians(degrees), 1 + draw[1] * zoom
    cosine, sine, zero = torch.cos(angle) / scale, torch.sin(angle) / scale, torch.zeros_like(angle)
    matrices = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    where = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), where, padding_mode="border", align_corners=False)
