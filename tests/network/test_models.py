"""Networks by name, for any image size, number of channels and of classes that they support."""

import pytest
import torch
from torch import nn

from stages.core.errors import StageError
from stages.network.models import MODELS, Architecture, Classifier, build_model, find_stem, whiten_stem
from stages.network.weights import parameter_count

IDENTITY = ([0.0], [1.0])  # mean and std

# Parameters of each layer for 28x28 grey images and ten classes; those of the references are as published.
LAYERS = {
    # conv 1-16 5x5 and 16-32 5x5, both padded by 2 and halved by pooling: 32 x 7 x 7 to 10
    "reference_a": [16 * 25 + 16, 32 * 16 * 25 + 32, 1568 * 10 + 10],
    # conv 1-16 3x3 and 16-32 3x3, both padded by 1 and halved: 1568 to 512 to 128 to 10
    "reference_b": [16 * 9 + 16, 32 * 16 * 9 + 32, 1568 * 512 + 512, 512 * 128 + 128, 128 * 10 + 10],
    # conv 1-6 3x3 padded by 2 (30, halved to 15) and 6-16 5x5 (11, halved to 5): 16 x 5 x 5 to 120 to 84 to 10
    "reference_c": [6 * 9 + 6, 16 * 6 * 25 + 16, 400 * 120 + 120, 120 * 84 + 84, 84 * 10 + 10],
    # conv 1-10 5x5 (24, halved to 12) and 10-20 5x5 (8, halved to 4): 20 x 4 x 4 to 10
    "reference_e": [10 * 25 + 10, 20 * 10 * 25 + 20, 320 * 10 + 10],
    # conv 1-32 5x5, stride 2 (12), 32-64 3x3 (10, halved to 5), 64-128 3x3 (3), two batch norms: 1152 to 10
    "compact": [32 * 25 + 32, 64 * 32 * 9, 2 * 64, 128 * 64 * 9, 2 * 128, 1152 * 10 + 10],
    # conv 1-32 5x5, stride 2 (12), 32-64 3x3 padded, 64-64 3x3 (10, halved to 5), 64-128 3x3 padded,
    # 128-128 3x3 (3), a batch norm for each but the first: 1152 to 10
    "deep": [832, 64 * 32 * 9, 128, 64 * 64 * 9, 128, 128 * 64 * 9, 256, 128 * 128 * 9, 256, 1152 * 10 + 10],
}


# The networks below need no number here: a new one takes part in all other tests by its name in MODELS.
@pytest.mark.parametrize("name", LAYERS)
def test_a_network_has_as_many_parameters_as_its_layers_imply(name: str) -> None:
    assert parameter_count(build_model(name, 32, 28, 1, 10, *IDENTITY)) == sum(LAYERS[name])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_network_is_trained_but_frozen_scales(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, 8, 32, 3, 4, [0.5] * 3, [0.2] * 3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # of a residual block it begins as zero, which holds back the gradient
    network(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.any(), key


def test_the_residual_network_has_the_tensors_of_torchvisions_resnet18() -> None:
    from torchvision.models import resnet18

    shapes = {name: tensor.shape for name, tensor in resnet18(num_classes=7).state_dict().items()}
    network = build_model("resnet", 64, 64, 3, 7, [0.5] * 3, [0.2] * 3, depth=2)
    ours = {name.removeprefix("body."): tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if not name.startswith("fc.")}.items() <= ours.items()


@pytest.mark.parametrize("size", [28, 31, 32, 64, 96])
def test_width_and_depth_of_the_residual_network_are_params(size: int) -> None:
    counts = [
        parameter_count(build_model("resnet", width, size, 3, 4, [0.5] * 3, [0.2] * 3, depth))
        for width, depth in ((8, 1), (8, 2), (16, 1))
    ]
    assert counts == sorted(counts)
    assert len({*counts}) == 3


def test_a_pointwise_convolution_with_a_stride_gives_the_same_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes every second pixel before the convolution: test_train.py shows what that is for."""

    def strided(channels: int, width: int) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(channels, width, 1, stride=(2, 3)), nn.Flatten())

    monkeypatch.setitem(MODELS, "strided", Architecture(strided))
    network = build_model("strided", 8, 27, 3, 4, [0.0] * 3, [1.0] * 3)
    images = torch.randint(0, 256, (2, 3, 27, 27), dtype=torch.uint8)
    torch.testing.assert_close(network.hidden(images), strided(3, 8)(images / 255))


@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (32, 3, 7), (64, 3, 2), (20, 1, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_takes_uint8_pixels_of_any_size_and_gives_a_logit_for_each_class(
    name: str, size: int, channels: int, classes: int
) -> None:
    network = build_model(name, 32, size, channels, classes, [0.5] * channels, [0.2] * channels)
    images = torch.randint(0, 256, (5, channels, size, size), dtype=torch.uint8)
    assert network.training
    hidden = network.hidden(images)
    assert hidden.shape == (5, network.head.in_features)
    assert network(images).shape == (5, classes)


@pytest.mark.parametrize("name", MODELS)
def test_normalization_is_part_of_the_network(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, 32, 28, 3, 4, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]).eval()
    without = build_model(name, 32, 28, 3, 4, [0.0] * 3, [1.0] * 3).eval()
    without.load_state_dict({**network.state_dict(), "mean": without.mean, "std": without.std})
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    normalized = (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(network(images), without(normalized * 255), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(network(images), without(images))


def test_mean_and_std_are_saved_with_the_weights_but_not_trained() -> None:
    network = build_model("compact", 32, 28, 1, 10, [0.1], [0.3])
    assert {"mean", "std"} <= network.state_dict().keys()
    assert not {"mean", "std"} & dict(network.named_parameters()).keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_global_seed_determines_the_initial_weights(name: str) -> None:
    def initial_weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_model(name, 32, 28, 1, 10, *IDENTITY).head.weight

    assert torch.equal(initial_weight(1), initial_weight(1))
    assert not torch.equal(initial_weight(1), initial_weight(2))


@pytest.mark.parametrize("name", MODELS)
def test_building_a_network_does_not_change_its_running_statistics(name: str) -> None:
    state = build_model(name, 32, 28, 1, 10, *IDENTITY).state_dict()
    assert all(
        not tensor.any() for key, tensor in state.items() if key.endswith(("running_mean", "num_batches_tracked"))
    )
    assert all((tensor == 1).all() for key, tensor in state.items() if key.endswith("running_var"))


@pytest.mark.parametrize(
    ("name", "size"), [("compact", 8), ("reference_a", 3), ("reference_c", 8), ("reference_e", 15)]
)
def test_images_that_are_too_small_raise_an_error_that_names_the_param(name: str, size: int) -> None:
    with pytest.raises(
        StageError, match=rf"'{name}' is too deep for images of {size} x {size}: raise preprocess\.size"
    ):
        build_model(name, 32, size, 1, 10, *IDENTITY)


def test_the_outputs_of_a_whitened_stem_are_uncorrelated_with_equal_variance_and_it_is_not_trained() -> None:
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(
        torch.rand(400, 1, 9, 9), 28, mode="bicubic"
    )  # neighbouring pixels correlate
    images = (noise.clamp(0, 1) * 255).byte()
    network = build_model("compact", 16, 28, 1, 10, [0.5], [0.3])
    whiten_stem(network, images)
    stem = network.body[0]
    assert not any(parameter.requires_grad for parameter in stem.parameters())
    assert torch.equal(stem.weight[:8], -stem.weight[8:])
    outputs = stem((images.float() / 255 - 0.5) / 0.3)[:, :8].transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    covariances = covariance - torch.diag(covariance.diagonal())
    assert covariances.abs().mean() < 0.1 * covariance.diagonal().mean()  # not exact, since it uses fewer patches
    assert covariance.diagonal().max() < 3 * covariance.diagonal().min()


def test_a_stem_that_cannot_be_whitened_is_one_line() -> None:
    network = build_model("compact", 16, 28, 1, 10, [0.5], [0.3])
    flat = torch.full((10, 1, 28, 28), 200, dtype=torch.uint8)
    with pytest.raises(StageError, match=r"train\.stem: whitened needs images with contrast"):
        whiten_stem(network, flat)
    linear = Classifier(nn.Sequential(nn.Flatten()), nn.Linear(784, 10), [0.5], [0.3])
    with pytest.raises(StageError, match=r"train\.stem: whitened needs a network with a convolution"):
        whiten_stem(linear, flat)


class NestedLast(nn.Module):
    """Its first convolution is nested, and is not the first that is registered."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(width, width, 3)
        self.inner = nn.ModuleDict({"stem": nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU())})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner["stem"](images)).mean((2, 3))


@pytest.mark.parametrize(("architecture", "place"), [(None, "body.conv1"), (NestedLast, "body.inner.stem.0")])
def test_the_stem_is_the_first_convolution_that_runs_wherever_it_is(
    architecture: type[nn.Module] | None, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if architecture:
        monkeypatch.setitem(MODELS, "resnet", Architecture(architecture))
    network = build_model("resnet", 16, 32, 3, 4, [0.5] * 3, [0.3] * 3)
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    assert find_stem(network, images) is network.get_submodule(place)
    assert network.training
    whiten_stem(network, images)
    frozen = {name.rpartition(".")[0] for name, weight in network.named_parameters() if not weight.requires_grad}
    assert frozen == {place}


def test_a_stem_that_does_not_see_the_image_cannot_be_whitened() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    body = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), nn.Flatten())
    network = Classifier(body, nn.Linear(64, 4), [0.5] * 3, [0.3] * 3)
    with pytest.raises(StageError, match=r"train\.stem: whitened needs a first convolution that sees the image itself"):
        whiten_stem(network, images)


def test_filters_beyond_the_number_of_directions_keep_their_random_weights() -> None:
    torch.manual_seed(0)
    network = build_model("compact", 64, 28, 1, 10, [0.5], [0.3])  # 25 directions, with both signs
    before = network.body[0].weight.clone()
    whiten_stem(network, torch.randint(0, 256, (50, 1, 28, 28), dtype=torch.uint8))
    changed = (network.body[0].weight != before).flatten(1).any(1)
    assert changed[:50].all()
    assert not changed[50:].any()
