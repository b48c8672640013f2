"""Changes a batch of images at random, each image in its own way; gives floats in 0..255.

The random numbers are drawn on the CPU, so that they are the same for every device. torchvision.transforms.v2 is not
used: on a batch it changes all images alike, and it draws from torch's global generator (docs/experiments.md).
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

GREY = (0.299, 0.587, 0.114)  # the luma of red, green and blue: ITU-R BT.601
ERASED_SIDES = (0.15, 0.5)  # of random_erasing: a side of the rectangle, as a fraction of the image's
SHIFT_GROUP = 16  # consecutive images of a batch that share a shift: copying each image by itself would be slower


def random_shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Shift each group of images by a whole number of pixels, up to `pixels` each way; border pixels are repeated."""
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


def random_crop(images: Tensor, smallest: float, generator: Generator) -> Tensor:
    """Scale a random part of each image to the whole size, bilinear.

    Height and width of the part are drawn each for itself, from the fraction `smallest` of the image's to all of it.
    """
    random = torch.rand(4, len(images), generator=generator)
    scale = smallest + (1 - smallest) * random[:2]
    centre = (1 - scale) * (2 * random[2:] - 1)  # in the grid's coordinates, -1..1 from border to border
    zero = torch.zeros(len(images))
    matrices = torch.stack(
        [torch.stack([scale[0], zero, centre[0]], 1), torch.stack([zero, scale[1], centre[1]], 1)], 1
    )
    grid = functional.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with a probability of a half."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(per_image(mirrored, images), images.flip(3), images).float()


def random_color(images: Tensor, brightness: float, contrast: float, saturation: float, generator: Generator) -> Tensor:
    """Multiply the brightness, contrast and saturation of each image by factors from 1 - x to 1 + x."""
    limits = torch.tensor([brightness, contrast, saturation])[:, None]
    factors = 1 + limits * (2 * torch.rand(3, len(images), generator=generator) - 1)
    brightness_factor, contrast_factor, saturation_factor = (per_image(row, images) for row in factors)
    images = (images.float() * brightness_factor).clamp(0, 255)
    if contrast:
        mean = to_grey(images).mean((1, 2, 3), keepdim=True)
        images = (mean + (images - mean) * contrast_factor).clamp(0, 255)
    if saturation and images.shape[1] == 3:
        grey = to_grey(images)
        images = (grey + (images - grey) * saturation_factor).clamp(0, 255)
    return images


def random_erasing(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Fill a rectangle in a fraction of the images with one random colour (Zhong et al., 2017, arXiv:1708.04896)."""
    count, channels, *sizes = images.shape
    random = torch.rand(5 + channels, count, generator=generator)
    inside = per_image(random[0] < probability, images)
    low, high = ERASED_SIDES
    for axis, size, side, start in zip((2, 3), sizes, random[1:3], random[3:5], strict=True):
        length = (low + (high - low) * side) * size
        begin = (start * (size - length)).round()
        shape = [1, 1, 1, 1]
        shape[axis] = size
        position = torch.arange(size, device=images.device).view(shape)
        begin, end = per_image(begin, images), per_image((begin + length).round(), images)
        inside = inside & (position >= begin) & (position < end)
    colour = (255 * random[5:]).T[:, :, None, None].to(images.device)
    return torch.where(inside, colour, images.float())


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, in a shape that all its pixels share."""
    return values.view(-1, 1, 1, 1).to(images.device)


def to_grey(images: Tensor) -> Tensor:
    """(batch, 1, height, width)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    grey: Tensor = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return grey
