"""Networks: their size, their shape, their first weights, and the normalisation in front (recipes.md 1 and 6)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import BALL, batch_of, tiny
from demilune.attacks import FGSM
from demilune.core.geometry import Ball
from demilune.core.losses import cross_entropy
from demilune.core.random import Stream
from demilune.errors import DemiluneError
from demilune.models import (
    MODELS,
    VGG16,
    Architecture,
    MobileNetV2,
    Normalized,
    PreActResNet18,
    ResNet18,
    Small,
    WideResNet,
    create,
)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NARROW: dict[str, Architecture] = {
    "small": Small(4),
    "resnet18": ResNet18(4),
    "preact_resnet18": PreActResNet18(4),
    "wide_resnet": WideResNet(10, 1),
    "vgg16": VGG16(2),
    "mobilenet_v2": MobileNetV2(0.125),
}
every_network = pytest.mark.parametrize("architecture", NARROW.values(), ids=NARROW)


def built(architecture: Architecture, classes: int = 10) -> Normalized:
    return create(architecture, 3, classes, MEAN, STD, Stream.of(0))


def pictures(n: int = 4, size: int = 32) -> Tensor:
    return Stream.of(0).uniform("pictures", (n, 3, size, size))


def warmed(architecture: Architecture) -> Normalized:
    """Return a network in eval mode whose running statistics are not the initial ones."""
    model = built(architecture).train()
    with torch.no_grad():
        model(pictures(8))
    return model.eval()


def test_the_table_holds_every_network() -> None:
    assert {name: type(network) for name, network in NARROW.items()} == dict(MODELS)


@pytest.mark.parametrize(
    ("architecture", "ten", "hundred"),
    [
        (WideResNet(34, 10), 46_160_474, 46_218_164),
        (WideResNet(28, 10), 36_479_194, 36_536_884),
        (WideResNet(34, 20), 184_531_674, 184_646_964),
        (PreActResNet18(), 11_172_170, 11_218_340),
        (PreActResNet18(stem=2), 11_172_170, 11_218_340),
        (ResNet18(), 11_173_962, 11_173_962 + 90 * 513),
        (VGG16(), 14_728_266, 14_728_266 + 90 * 513),
        (MobileNetV2(), 2_296_922, 2_296_922 + 90 * 1281),
    ],
    ids=str,
)
def test_parameter_counts(architecture: Architecture, ten: int, hundred: int) -> None:
    for classes, expected in ((10, ten), (100, hundred)):
        with torch.device("meta"):
            net = architecture.build(3, classes)
        assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize(
    ("architecture", "size", "giga"),
    [
        (PreActResNet18(), 32, 0.555),
        (PreActResNet18(), 128, 8.89),
        (PreActResNet18(stem=2), 128, 8.89 / 4),
        (WideResNet(28, 10), 32, 5.243),
        (VGG16(), 32, 0.313),
    ],
    ids=str,
)
def test_multiplications_of_an_image(architecture: Architecture, size: int, giga: float) -> None:
    """Convolutions and the linear layer; VGG-16's by hand, the others from recipes.md 1."""
    with torch.device("meta"):
        net, total = architecture.build(3, 10), list[int]()

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        total.append(module.weight.numel() * output[0].numel() // output.shape[1])

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net.eval()(torch.empty(1, 3, size, size, device="meta"))
    assert sum(total) / 1e9 == pytest.approx(giga, rel=2e-3)


def test_vgg_has_the_convolutions_of_the_recipe() -> None:
    net = built(VGG16(2)).net
    convs = [module for module in net.features if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels // 2 for conv in convs] == [1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8]
    assert all(conv.bias is not None and conv.kernel_size == (3, 3) for conv in convs)
    names = "".join(type(module).__name__[0] for module in net.features)
    assert names == "CBRCBRM" * 2 + "CBRCBRCBRM" * 3


@pytest.mark.parametrize(("size", "places"), [(8, 1), (28, 1), (32, 1), (64, 2), (128, 4), (160, 5)])
def test_vgg_takes_any_size(size: int, places: int) -> None:
    model, seen = built(VGG16(1)).eval(), list[Tensor]()
    model.net.features.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert model(pictures(2, size)).isfinite().all()
    assert seen[0].shape[2:] == (places, places)


def test_mobilenet_shrinks_and_adds_as_the_common_code() -> None:
    net = built(MobileNetV2(0.125)).eval().net
    sizes = list[int]()
    for block in net.blocks:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2]))
        assert (block.shortcut is None) == (block.conv2.stride == (2, 2))
        assert block.conv2.groups == block.conv2.out_channels
    net(pictures(1, 32))
    assert sizes == [32] * 3 + [16] * 3 + [8] * 7 + [4] * 4
    block, x = net.blocks[4], Stream.of(1).normal("x", (2, 8, 8, 8))  # the input's channels fit: it is added as it is
    out = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())).relu()
    assert torch.allclose(block(x), block.bn3(block.conv3(out)) + x, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "stem", "first", "last"), [(0.5, 16, 8, 1280), (1.0, 32, 16, 1280), (2, 64, 32, 2560)]
)
def test_a_width_of_mobilenet_scales_its_channels(width: float, stem: int, first: int, last: int) -> None:
    with torch.device("meta"):
        net = MobileNetV2(width).build(3, 10)
    assert (net.conv1.out_channels, net.blocks[0].conv3.out_channels, net.linear.in_features) == (stem, first, last)


def test_a_stem_of_stride_two_halves_what_is_pooled_and_the_default_changes_nothing() -> None:
    model, plain, seen = built(PreActResNet18(4, stem=2)), built(PreActResNet18(4)), list[Tensor]()
    assert plain.net.conv1.stride == (1, 1)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in model.state_dict().items())
    model.net.bn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(pictures(2, 64))
    assert seen[0].shape[2:] == (4, 4)


@every_network
@pytest.mark.parametrize(("n", "classes", "size"), [(1, 2, 32), (3, 10, 32), (2, 100, 24)])
def test_logits_have_one_row_an_image_and_one_column_a_class(
    architecture: Architecture, n: int, classes: int, size: int
) -> None:
    logits = built(architecture, classes).eval()(pictures(n, size))
    assert logits.shape == (n, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("architecture", "size", "places"),
    [
        (WideResNet(10, 1), 32, 8),
        (WideResNet(16, 2), 32, 8),
        (PreActResNet18(4), 32, 4),
        (PreActResNet18(4), 64, 8),
    ],
    ids=str,
)
def test_what_is_pooled(architecture: Architecture, size: int, places: int) -> None:
    model, seen = built(architecture).eval(), list[Tensor]()
    model.net.bn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pooled = list[Tensor]()
    model.net.linear.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    model(pictures(2, size))
    assert seen[0].shape[2:] == (places, places)
    assert torch.allclose(pooled[0], seen[0].relu().mean(dim=(2, 3)))


def test_wide_resnets_have_the_widths_and_strides_of_the_recipe() -> None:
    net = built(WideResNet(16, 2)).net
    shape = [(b.conv1.in_channels, b.conv1.out_channels, b.conv1.stride[0], b.shortcut is None) for b in net.blocks]
    assert shape == [
        (16, 32, 1, False),
        (32, 32, 1, True),
        (32, 64, 2, False),
        (64, 64, 1, True),
        (64, 128, 2, False),
        (128, 128, 1, True),
    ]


@pytest.mark.parametrize("architecture", [WideResNet(10, 1), PreActResNet18(4)], ids=str)
def test_shortcuts_take_the_activated_input_where_the_shape_changes(architecture: Architecture) -> None:
    model = warmed(architecture)
    block = next(b for b in model.net.blocks if b.shortcut is not None)
    plain = next(b for b in model.net.blocks if b.shortcut is None)
    for module in (block, plain):
        x = Stream.of(1).normal("x", (2, module.conv1.in_channels, 8, 8))
        active = module.bn1(x).relu()
        branch = module.conv2(module.bn2(module.conv1(active)).relu())
        kept = x if module is plain else block.shortcut(active)
        assert torch.allclose(module(x), branch + kept, atol=1e-6)


def test_convolutions_of_a_wide_resnet_start_as_he_says() -> None:
    net = built(WideResNet(10, 6)).net
    checked = 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            if module.weight.numel() >= 20_000:
                expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
                weight = module.weight.detach()
                assert float(weight.std()) == pytest.approx(expected, rel=0.02)
                assert abs(float(weight.mean())) < 0.02 * expected
                checked += 1
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert (module.momentum, module.eps) == (0.1, 1e-5)
    assert checked >= 6
    assert (net.linear.bias == 0).all()


@every_network
def test_a_normalised_network_is_the_raw_one_on_normalised_images(architecture: Architecture) -> None:
    model, x = warmed(architecture), pictures()
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    assert torch.equal(model(x), model.net((x - mean) / std))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in model.net.parameters())


def test_an_attack_on_pixels_is_one_on_normalised_images_with_a_radius_per_channel() -> None:
    model, x = warmed(Small(4)).double(), pictures().double()
    y, ball = torch.tensor([0, 3, 9, 1]), Ball("linf", 8 / 255)
    mean, std = (torch.tensor(values).double().reshape(1, 3, 1, 1) for values in (MEAN, STD))
    inner = ((x - mean) / std).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model.net(inner), y).sum(), inner)
    by_hand = inner.detach() + ball.eps / std * gradient.sign()
    by_hand = torch.minimum(torch.maximum(by_hand, -mean / std), (1 - mean) / std)
    found = FGSM()(model, x, y, ball, Stream.of(0).images(torch.arange(4)))
    assert torch.allclose((found - mean) / std, by_hand, atol=1e-6)


@every_network
def test_in_eval_mode_no_image_feels_its_batch_mates(architecture: Architecture) -> None:
    model, x = warmed(architecture), pictures()
    with torch.no_grad():
        together = model(x)
        assert torch.allclose(torch.cat([model(image[None]) for image in x]), together, atol=1e-5)
        assert torch.equal(model(x), together)


@every_network
def test_the_same_address_gives_the_same_weights_and_no_generator_is_touched(architecture: Architecture) -> None:
    before = torch.get_rng_state()
    first = built(architecture).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    for name, tensor in built(architecture).state_dict().items():
        assert torch.equal(tensor, first[name]), name
    other = create(architecture, 3, 10, MEAN, STD, Stream.of(1)).state_dict()
    assert not torch.equal(other["net.linear.weight"], first["net.linear.weight"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Small(0),
        lambda: Small(-4),
        lambda: ResNet18(0),
        lambda: PreActResNet18(-1),
        lambda: PreActResNet18(stem=0),
        lambda: PreActResNet18(stem=3),
        lambda: VGG16(0),
        lambda: MobileNetV2(0.0),
        lambda: MobileNetV2(-1.0),
        lambda: MobileNetV2(float("nan")),
        lambda: MobileNetV2(float("inf")),
        lambda: MobileNetV2(10**400),
        lambda: WideResNet(35, 10),
        lambda: WideResNet(4, 10),
        lambda: WideResNet(-2, 10),
        lambda: WideResNet(34, 0),
        lambda: WideResNet(34, -1),
    ],
)
def test_shapes_that_mean_nothing_are_refused(make: Callable[[], Architecture]) -> None:
    with pytest.raises(DemiluneError):
        make()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("value", ["x", None, [], True, float("nan"), 8.5])
def test_wrong_types_are_refused(name: str, value: Any) -> None:
    for field in inspect.signature(MODELS[name]).parameters:
        with pytest.raises(DemiluneError, match=rf"^{field} = "):
            MODELS[name](**{field: 17 if isinstance(value, float) and name == "mobilenet_v2" else value})


def test_the_tests_own_network_is_one_of_ours() -> None:
    batch = batch_of()
    assert tiny().eval()(batch.x).shape == (6, 4)
    assert FGSM()(tiny().eval(), batch.x, batch.y, BALL, Stream.of(0).images(batch.ids)).shape == batch.x.shape
