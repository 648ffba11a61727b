"""What is computed again in the backward pass changes no result."""

from collections.abc import Callable, Sequence

import pytest
import torch
from core_parts import one_block, shake, tiny
from torch import Tensor, nn

from adapt.architecture import MBConvShape
from adapt.network.masks import MaskKind
from adapt.network.mixed import Recompute
from adapt.network.operations import ACTIVATIONS, MBConv, ReLU6, scaled_norm
from adapt.network.recompute import can_recompute, frozen_forward
from adapt.network.supernet import Supernet
from adapt.traits import Activation


def supernet(mask: MaskKind = "non-overlapping", source: str = "mobilenet_v2") -> Supernet:
    torch.manual_seed(3)
    net = Supernet(tiny(source), mask=mask, generator=torch.Generator().manual_seed(3))
    for alpha in net.alphas.parameters():
        alpha.data.normal_(generator=torch.Generator().manual_seed(len(alpha)))
    return net.to(memory_format=torch.channels_last).train()


def gradients(net: Supernet, trained: Sequence[nn.Parameter], recompute: Recompute) -> list[Tensor]:
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    net.zero_grad()
    net.recompute = recompute
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sum(tap.square().mean() for tap in net(images).values()).backward()
    return [parameter.grad for parameter in trained if parameter.grad is not None]


@pytest.mark.parametrize("source", ["mobilenet_v2", "mobilenet_v3_large", "resnet50"])
@pytest.mark.parametrize("mask", ["non-overlapping", "overlapping", "individual"])
@pytest.mark.parametrize("recompute", ["norms", "operation", "block"])
def test_architecture_gradients_do_not_depend_on_what_is_kept(
    mask: MaskKind, recompute: Recompute, source: str
) -> None:
    net = supernet(mask, source)
    trained = net.architecture_parameters()
    kept, again = (gradients(net, trained, how) for how in ("off", recompute))
    assert len(kept) == len(again) == len(trained)
    for first, second in zip(kept, again, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("recompute", ["norms", "operation", "block"])
@pytest.mark.parametrize("number", [1, 2])
def test_weight_gradients_do_not_depend_on_what_is_kept(recompute: Recompute, number: int) -> None:
    net = supernet()
    net.paths = net.sample_paths(torch.Generator().manual_seed(0), uniform=True, number=number)
    trained = [p for p in net.parameters() if p.ndim == 4]
    kept, again = (gradients(net, trained, how) for how in ("off", recompute))
    assert len(kept) == len(again) > 10
    for first, second in zip(kept, again, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-7)


def frozen_mbconv(
    expansion: int = 3, activation: Activation = "relu6", se: bool = False, **options: bool
) -> MBConv:
    how = {"affine": False, "track_running_stats": False, **options}
    shape = MBConvShape(6, 10, 5, expansion, 2, residual=False, activation=activation, se=se)
    op = MBConv(shape, **how)
    shake(op, seed=1)
    return op.requires_grad_(False)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("expansion", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frozen_layers_return_and_pass_on_what_plain_ones_do(
    expansion: int, layout: torch.memory_format, activation: Activation
) -> None:
    op = frozen_mbconv(expansion, activation).to(memory_format=layout)
    data = 2 * torch.randn(2, 6, 9, 12, generator=torch.Generator().manual_seed(2))
    results = []
    for run in (op.conv, lambda x: frozen_forward(op.conv, x)):
        x = data.clone(memory_format=layout).requires_grad_(True)
        out = run(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    (plain, plain_gradient), (lean, lean_gradient) = results
    assert torch.equal(lean, plain)
    torch.testing.assert_close(lean_gradient, plain_gradient, rtol=1e-4, atol=1e-5)


def test_frozen_layers_keep_a_third_less_than_plain_ones() -> None:
    op = frozen_mbconv(6)

    x = torch.randn(2, 6, 32, 32, requires_grad=True)
    plain = saved_bytes(op.conv, x)
    assert saved_bytes(lambda x: frozen_forward(op.conv, x), x) < 0.67 * plain


@pytest.mark.parametrize(
    ("op", "possible"),
    [
        (frozen_mbconv(), True),
        (frozen_mbconv(affine=True), False),
        (frozen_mbconv(track_running_stats=True), False),
        (frozen_mbconv().eval(), False),
        (frozen_mbconv(se=True), False),
        (frozen_mbconv().requires_grad_(True), False),
    ],
)
def test_only_frozen_layers_with_batch_statistics_are_computed_again(
    op: MBConv, possible: bool
) -> None:
    assert can_recompute(op) is possible


def test_one_sampled_operation_gets_the_gradient_of_its_weight() -> None:
    """d loss / d alpha of GDAS: the derivative of softmax times <gradient, output>."""
    net = Supernet(one_block())
    net.paths = [[1]]
    (alpha,) = net.alphas.parameters()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (out,) = net(images).values()
    out.square().sum().backward()
    p = alpha.detach().softmax(0)
    expected = 2 * float(out.detach().square().sum()) * p[1] * (torch.eye(len(p))[1] - p)
    torch.testing.assert_close(alpha.grad, expected)


def test_several_sampled_operations_compete_among_themselves() -> None:
    net = Supernet(one_block(), generator=torch.Generator().manual_seed(1))
    (alpha,) = net.alphas.parameters()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alpha.copy_(torch.tensor([0.3, -0.4]))
        everything = net(images)["0"]
        net.paths = [[(0, 1)]]
        assert torch.allclose(net(images)["0"], everything)
    net(images)["0"].square().sum().backward()
    assert (alpha.grad != 0).all()


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return sum(t.untyped_storage().nbytes() for t in seen.values())


def test_relu6_has_the_gradient_of_pytorchs_and_keeps_its_result_only() -> None:
    data = torch.tensor([-1.0, 0.0, 0.5, 5.999, 6.0, 7.0])
    gradients = []
    for activation in (ReLU6(inplace=True), nn.ReLU6()):
        x = data.clone().requires_grad_(True)
        out = activation(x * 1)
        assert torch.equal(out.detach(), data.clamp(0, 6))
        (out * torch.arange(1.0, 7.0)).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    large = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda x: ReLU6(inplace=True)(x + 0) * 1, large) == large.nbytes


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("statistics", [False, True])
def test_scaled_norm_is_the_factor_times_the_norm(affine: bool, statistics: bool) -> None:
    norm = nn.BatchNorm2d(5, affine=affine, track_running_stats=statistics)
    shake(norm, seed=1)
    data = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    results = []
    for run in (lambda x, p: p * norm(x), lambda x, p: scaled_norm(norm, x, p)):
        x, p = data.clone().requires_grad_(True), torch.tensor(0.3, requires_grad=True)
        out = run(x, p)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, p.grad))
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)
