"""Our own convolution: values, gradients and bits; what it leaves to torch; and what happens without a compiler."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demilune.errors import DemiluneError
from demilune.kernels import Kernels, Packing, build, load, winograd
from demilune.kernels.conv import convolution, pays

FOUND = load()
compiled = pytest.mark.skipif(isinstance(FOUND, str), reason=str(FOUND))


@pytest.fixture
def packing() -> Packing:
    assert isinstance(FOUND, Kernels)
    return Packing(FOUND)


@pytest.fixture
def threads() -> Iterator[int]:
    """Give torch's number of threads, and leave it so."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(ours: Tensor, exact: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    with torch.no_grad():
        return float((ours - exact).abs().max() / exact.abs().max())


@compiled
@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (2, 3), (4, 4), (5, 8), (8, 8), (13, 6), (17, 16), (33, 33)])
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (1, 4), (4, 1), (3, 2), (2, 5)])
def test_values_are_the_definitions(height: int, width: int, inputs: int, outputs: int, packing: Packing) -> None:
    lanes = packing.kernels.lanes
    x, weight = normal(3, inputs * lanes, height, width), normal(outputs * lanes, inputs * lanes, 3, 3, seed=1)
    y = convolution(x, weight, False, packing)
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == torch.float32
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert apart(y, exact) < 2e-5
    back = convolution(exact.float(), weight, True, packing)
    assert apart(back, F.conv_transpose2d(exact, weight.double(), padding=1)) < 2e-5


@compiled
@pytest.mark.parametrize("channels, size", [(64, 32), (128, 16), (256, 8), (512, 4)])
def test_the_layers_of_a_resnet_are_near_the_definition(channels: int, size: int, packing: Packing) -> None:
    x, weight = normal(2, channels, size, size).relu(), normal(channels, channels, 3, 3, seed=1)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert apart(convolution(x, weight, False, packing), exact) < 1e-5


@compiled
def test_any_memory_may_be_given(packing: Packing) -> None:
    lanes = packing.kernels.lanes
    wide = normal(2, 9, 7, 2 * lanes + 3)
    x = wide[:, 1:, :, 1 : lanes + 1].permute(0, 3, 1, 2)  # begins anywhere, is not dense
    weight = normal(3, 3, 2 * lanes, lanes).permute(2, 3, 1, 0)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    for images in (x, x.contiguous(), x.contiguous(memory_format=torch.channels_last)):
        for filters in (weight, weight.contiguous(), weight.contiguous(memory_format=torch.channels_last)):
            assert apart(convolution(images, filters, False, packing), exact) < 2e-5
    beside = torch.empty(x.numel() + 1)[1:].view(2, 8, 7, lanes).copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert beside.data_ptr() % 64 and apart(convolution(beside, weight, False, packing), exact) < 2e-5


@compiled
def test_infinite_pixels_and_nan_spread_no_further_than_their_tiles(packing: Packing) -> None:
    lanes = packing.kernels.lanes
    x, weight = normal(1, lanes, 12, 12), normal(lanes, lanes, 3, 3, seed=1)
    x[0, 0, 0, 0] = float("nan")
    y = convolution(x, weight, False, packing)
    assert y[..., :2, :2].isnan().all() and y[..., 4:, :].isfinite().all() and y[..., 4:].isfinite().all()


@compiled
def test_what_does_not_fit_is_refused_before_memory_is_touched(packing: Packing) -> None:
    lanes = packing.kernels.lanes
    x, weight = normal(2, lanes, 5, 5), normal(2 * lanes, lanes, 3, 3)
    for images, filters in ((x.double(), weight), (normal(2, 2 * lanes, 5, 5), weight), (x, weight.bfloat16())):
        with pytest.raises(DemiluneError, match="is possible, with"):
            convolution(images, filters, False, packing)
    for filters in (weight[:-1], weight[..., :2], weight[:, :-1]):
        with pytest.raises(DemiluneError, match=f"multiples of {lanes}"):
            packing.kernels.pack(filters, False)


@compiled
@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_torchs(turned: bool, packing: Packing) -> None:
    lanes = packing.kernels.lanes
    weight = normal(2 * lanes, lanes, 3, 3, seed=1).requires_grad_()
    x = normal(2, (2 if turned else 1) * lanes, 6, 5).requires_grad_()
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = (F.conv_transpose2d if turned else F.conv2d)(exact_x, exact_weight, padding=1)
    y = convolution(x, weight, turned, packing)
    assert apart(y, exact) < 2e-5
    grads = torch.autograd.grad(y.sin().sum(), (x, weight))
    for one, other in zip(grads, torch.autograd.grad(exact.sin().sum(), (exact_x, exact_weight)), strict=True):
        assert apart(one, other) < 1e-4  # the sine passes the outputs' errors on


@compiled
def test_second_derivatives_are_torchs(packing: Packing) -> None:
    lanes = packing.kernels.lanes

    def second(x: Tensor, weight: Tensor, ours: bool) -> tuple[Tensor, ...]:
        x, weight = x.requires_grad_(), weight.requires_grad_()
        y = convolution(x, weight, False, packing) if ours else F.conv2d(x, weight, padding=1)
        first = torch.autograd.grad((y**3).sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), (x, weight))

    x, weight = normal(2, lanes, 5, 6) / 4, normal(2 * lanes, lanes, 3, 3, seed=1) / 12
    exact = second(x.double(), weight.double(), False)
    for one, other in zip(second(x, weight, True), exact, strict=True):
        assert apart(one, other) < 1e-4


@compiled
@pytest.mark.parametrize("channels, size", [(2, 4), (2, 9), (5, 4), (20, 8)])
def test_an_images_bits_depend_on_nothing_beside_it(channels: int, size: int, packing: Packing, threads: int) -> None:
    lanes = packing.kernels.lanes
    parts = list(range(1, 13))  # every number of tiles that is summed at once
    x, weight = normal(sum(parts), channels * lanes, size, size), normal(3 * lanes, channels * lanes, 3, 3, seed=1)
    torch.set_num_threads(1)
    whole = convolution(x, weight, False, packing)
    assert torch.equal(whole, torch.cat([convolution(one, weight, False, packing) for one in x.split(parts)]))
    for number in (2, 3):
        torch.set_num_threads(number)
        packing.clear()
        assert torch.equal(convolution(x, weight, False, packing), whole)


@compiled
def test_it_runs_on_torchs_threads(packing: Packing, threads: int) -> None:
    if not packing.kernels.threaded:
        pytest.skip("this compiler's OpenMP is not torch's")
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        assert packing.kernels.library.demilune_threads() == packing.kernels.threads == number


@compiled
def test_callers_at_once_do_not_disturb_each_other(packing: Packing) -> None:
    lanes = packing.kernels.lanes
    weight = normal(lanes, lanes, 3, 3, seed=1)
    images = [normal(4, lanes, 9, 9, seed=seed) for seed in range(16)]
    alone = [convolution(x, weight, False, packing) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(lambda x: convolution(x, weight, False, packing), images), strict=True):
            assert torch.equal(one, other)


def ours(y: Tensor) -> bool:
    """Say whether the last operation was our convolution."""
    return "ConvolutionBackward object" in repr(y.grad_fn)


@compiled
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, inside its forward mode
def test_networks_are_intercepted_where_it_fits(packing: Packing) -> None:
    c = max(16, packing.kernels.lanes)
    x = normal(4, c, 8, 8).requires_grad_()
    fits = nn.Conv2d(c, 2 * c, 3, padding=1, bias=False)
    with winograd(packing):
        assert (
            ours(fits(x))
            and ours(F.conv2d(x, fits.weight, padding="same"))
            and ours(F.conv2d(x, fits.weight, None, 1, 1))
        )
        assert ours(torch.conv2d(input=x, weight=fits.weight, padding=(1, 1), stride=[1, 1]))
        assert not ours(nn.Conv2d(c, c, 3, padding=1, stride=2)(x))
        assert not ours(nn.Conv2d(c, c, 3, padding=0)(x)) and not ours(nn.Conv2d(c, c, 1)(x))
        assert not ours(nn.Conv2d(c, c, 3, padding=2, dilation=2)(x))
        assert not ours(nn.Conv2d(c, c, 3, padding=1, groups=c)(x))
        assert not ours(nn.Conv2d(c, c + 1, 3, padding=1)(x)) and not ours(F.conv2d(x[0], fits.weight, padding=1))
        assert not ours(F.conv2d(x.double(), fits.weight.double(), padding=1))
        with torch.autocast("cpu", torch.bfloat16):
            assert fits(x).dtype == torch.bfloat16
        traced = torch.func.vmap(lambda one: F.conv2d(one, fits.weight, padding=1))(x[:, None])
        assert traced.shape == (4, 1, 2 * c, 8, 8)
        tangent = torch.func.jvp(lambda one: F.conv2d(one, fits.weight, padding=1), (x.detach(),), (x.detach(),))[1]
        with pytest.raises(RuntimeError, match="bias"):
            F.conv2d(x, fits.weight, torch.zeros(1), padding=1)
        with pytest.raises(RuntimeError, match="channels"):
            F.conv2d(x[:, :-1], fits.weight, padding=1)
    assert apart(tangent, fits(x)) < 2e-5 and not ours(fits(x))
    assert pays(128, 4, 4) and not pays(1, 4, 4) and not pays(128, 2, 2)


@compiled
def test_a_networks_gradients_are_torchs_with_bias_and_batch_norm(packing: Packing) -> None:
    c = max(16, packing.kernels.lanes)
    net = nn.Sequential(
        nn.Conv2d(3, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)
    ).double()
    x = normal(4, 3, 9, 7).double().requires_grad_()
    exact = torch.autograd.grad(net(x).square().sum(), (x, *net.parameters()))
    net, x = net.float(), x.detach().float().requires_grad_()
    with winograd(packing):
        y = net(x)
        with torch.no_grad():
            assert torch.equal(net(x), y)
    grads = torch.autograd.grad(y.square().sum(), (x, *net.parameters()))
    for one, other in zip(grads[:1] + grads[3:], exact[:1] + exact[3:], strict=True):  # BN makes the first bias's 0
        assert apart(one, other) < 2e-4


@compiled
def test_filters_are_kept_while_the_weight_lives_unchanged(packing: Packing) -> None:
    lanes = packing.kernels.lanes
    x, weight = normal(2, lanes, 4, 4), nn.Parameter(normal(lanes, lanes, 3, 3))
    state = packing.state(weight)
    first = packing.of(weight, False, state)
    assert packing.of(weight, False, packing.state(weight)) is first and len(packing.held) == 1
    assert packing.of(weight, True, state) is not first and packing.of(weight, True, state) is packing.of(
        weight, True, state
    )
    assert packing.of(weight.detach().clone(), False, state) is not first

    def fused(one: nn.Parameter) -> None:
        one.grad = torch.ones_like(one)
        torch.optim.SGD([one], lr=0.1, fused=True).step()

    def replaced(one: nn.Parameter) -> None:
        one.data = normal(lanes, lanes, 3, 3, seed=5).contiguous(memory_format=torch.channels_last)

    changes: list[Callable[[nn.Parameter], object]] = [
        lambda one: one.detach().mul_(2),
        lambda one: one.data[1, 2, 0, 1].add_(3),
        lambda one: one.detach().numpy().__setitem__((0, 0), 1.0),
        fused,
        replaced,
    ]
    for change in changes:
        change(weight)
        with torch.no_grad():
            exact = F.conv2d(x.double(), weight.double(), padding=1)
            assert apart(convolution(x, weight, False, packing), exact) < 2e-5
    with torch.inference_mode():
        assert apart(convolution(x, weight * 1, False, packing), F.conv2d(x, weight, padding=1)) < 2e-5
    del weight
    gc.collect()
    assert len(packing.held) == 0


@compiled
def test_a_change_between_forward_and_backward_is_refused_as_torch_does(packing: Packing) -> None:
    lanes = packing.kernels.lanes
    x, weight = normal(2, lanes, 4, 4).requires_grad_(), normal(lanes, lanes, 3, 3)
    y = convolution(x, weight, False, packing)
    weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@compiled
def test_builders_at_once_keep_one_sound_library_and_a_damaged_one_is_built_anew(tmp_path: Path) -> None:
    compiler, folder = build.compiler(), tmp_path / "kernels"
    with ThreadPoolExecutor(2) as pool:
        assert all(isinstance(one, Kernels) for one in pool.map(lambda _: build.made(compiler, folder), range(2)))
    kept = sorted(folder.iterdir())
    assert kept and all(path.name == build._name(path.name.split("-")[1], path) for path in kept)
    for path in kept:
        whole = path.read_bytes()
        path.unlink()  # the old file stays as it is, under the libraries that are loaded
        path.write_bytes(whole[: len(whole) // 2])
        path.chmod(0o700)
    assert isinstance(build.made(compiler, folder), Kernels)
    (fresh,) = folder.iterdir()
    assert fresh.name == build._name(fresh.name.split("-")[1], fresh)
    before = fresh.stat()
    assert isinstance(build.made(compiler, folder), Kernels)
    assert [(path, path.stat().st_mtime_ns) for path in folder.iterdir()] == [(fresh, before.st_mtime_ns)]


@compiled
def test_nobody_elses_library_is_loaded_and_a_folder_is_not_needed(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    path = folder / f"winograd-key-{'0' * 20}.so"
    path.write_bytes(b"")
    assert build._kept(folder, "key") is None
    path.rename(folder / build._name("key", path))
    assert build._kept(folder, "key") is None  # anyone may have written it
    folder.chmod(0o700)
    path = next(folder.iterdir())
    path.chmod(0o600)
    assert build._kept(folder, "key") == path
    file = tmp_path / "file"
    file.touch()
    assert build._keep(file / "below", "key", path) is None and build._keep(None, "key", path) is None


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEMILUNE_CACHE", str(tmp_path))
    for given, told in (("no-such-compiler -m64", "'no-such-compiler'"), ("'", "cannot be read"), ("false", "failed")):
        monkeypatch.setenv("CXX", given)
        reason = load.__wrapped__()
        assert isinstance(reason, str) and told in reason and "\n" not in reason
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in str(load.__wrapped__())
    assert list(tmp_path.iterdir()) == []


@compiled
def test_a_wrong_convolution_is_refused(packing: Packing) -> None:
    class Wrong:
        def __init__(self, library: object) -> None:
            self.demilune_convolve = library.demilune_convolve

        def demilune_pack(self, *given: object) -> None:
            packing.kernels.library.demilune_pack(*given[:7], 0, *given[8:])  # never turned

    with pytest.raises(DemiluneError, match="differs from torch's by"):
        build.tried(Kernels(Wrong(packing.kernels.library), packing.kernels.lanes, False))
