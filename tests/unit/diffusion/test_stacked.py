"""Stacked adapters against one model each, built with plain linear algebra."""

import pytest
import torch

from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.denoisers.unet import UNet


class _Net(torch.nn.Module):
    """The names of a UNet's transformer block, in few parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        block = torch.nn.Module()
        block.attn1 = torch.nn.Module()
        block.attn1.to_q = torch.nn.Linear(6, 5)
        block.ff = torch.nn.Module()
        block.ff.net = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Identity(), torch.nn.Linear(5, 3)])
        block.ff.net[0].proj = torch.nn.Linear(5, 5, bias=False)
        self.block = block

    def forward(self, x):
        y = torch.tanh(self.block.attn1.to_q(x))
        return self.block.ff.net[2](torch.tanh(self.block.ff.net[0].proj(y)))


K, B = 3, 4


def _stacked(scale: float = 0.5):
    net = _Net().requires_grad_(False)
    layers = stacked.stack(net, stacked.targeted(net, ["attention", "feed_forward"], UNet.targets), K, 2, scale)
    torch.manual_seed(2)
    with torch.no_grad():
        for p in stacked.parameters(layers):
            p.normal_()
    return net, layers


def _alone(layers, k: int):
    """A plain network whose weights are W + B A of adapter k."""
    net = _Net()
    with torch.no_grad():
        for name, (A, B_) in stacked.factors(layers, k).items():
            net.get_submodule(name).weight += B_ @ A
    return net


def test_forward_equals_one_merged_model_each():
    net, layers = _stacked()
    x = torch.randn(K * B, 7, 6)
    together = net(x).view(K, B, 7, 3)
    for k in range(K):
        torch.testing.assert_close(together[k], _alone(layers, k)(x.view(K, B, 7, 6)[k]), atol=1e-5, rtol=1e-5)


def test_gradient_of_one_adapter_sees_no_neighbour():
    net, layers = _stacked()
    x = torch.randn(K * B, 7, 6)
    net(x).view(K, B, 7, 3)[1].square().sum().backward()
    for p in stacked.parameters(layers):
        assert p.grad[1].abs().sum() > 0
        assert p.grad[0].abs().sum() == 0
        assert p.grad[2].abs().sum() == 0


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_linear_layer_are_those_of_finite_differences(bias):
    """torch.autograd.gradcheck, in double precision; and the same as autograd's of the plain sum."""
    torch.manual_seed(3)
    layer = stacked.StackedLinear(torch.nn.Linear(5, 3, bias=bias).double().requires_grad_(False), K, 2, 0.7)
    factors = [torch.randn(p.shape, dtype=torch.float64, requires_grad=True) for p in (layer.A, layer.B)]
    x = torch.randn(K * B, 7, 5, dtype=torch.float64, requires_grad=True)

    def adapted(x, A, B):
        return torch.func.functional_call(layer, {"A": A, "B": B}, (x,))

    def plain(x, A, B):
        rows = x.view(K, -1, 5)
        return layer.frozen(x) + 0.7 * (rows @ A.mT @ B.mT).view(*x.shape[:-1], 3)

    assert torch.autograd.gradcheck(adapted, (x, *factors))
    direction = torch.randn(K * B, 7, 3, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((f(x, *factors) * direction).sum(), (x, *factors)) for f in (adapted, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_within_autocast_products_are_of_half_precision_and_gradients_of_the_factors_own():
    layer = stacked.StackedLinear(torch.nn.Linear(8, 6).requires_grad_(False), K, 2, 1.0)
    with torch.no_grad():
        for p in (layer.A, layer.B):
            p.normal_()
    x = torch.randn(K * B, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and layer.A.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), atol=0.1, rtol=0.05)


def test_clipping_is_per_adapter():
    net, layers = _stacked()
    params, flat = stacked.parameters(layers), stacked.flatten(layers)
    weight = torch.tensor([1e-4, 1.0, 100.0]).repeat_interleave(B).view(-1, 1, 1)
    (net(torch.randn(K * B, 7, 6)) * weight).sum().backward()
    before = [p.grad.clone() for p in params]
    flat.gather()
    norms = stacked.clip_gradients(flat.gradients, 0.05)
    assert norms[0] < 0.05 < norms[1] < norms[2]
    for k in range(K):
        after = flat.rows[k].grad
        was = torch.cat([g[k].flatten() for g in before])
        torch.testing.assert_close(after, was * min(1.0, 0.05 / norms[k].item()))


def test_put_and_factors_are_inverse_and_pad_the_rank():
    _, layers = _stacked(scale=1.0)
    small = {"block.attn1.to_q": (torch.randn(1, 6), torch.randn(5, 1))}
    stacked.put(layers, 2, small)
    A, B_ = stacked.factors(layers, 2)["block.attn1.to_q"]
    torch.testing.assert_close(B_ @ A, small["block.attn1.to_q"][1] @ small["block.attn1.to_q"][0])


def test_put_names_what_does_not_fit():
    _, layers = _stacked()
    wrong = (torch.randn(2, 9), torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"block\.nowhere.*block\.attn1\.to_q|block\.attn1\.to_q.*block\.nowhere"):
        stacked.put(layers, 0, {"block.nowhere": wrong, "block.attn1.to_q": wrong})


def test_unstack_restores_the_base():
    net, layers = _stacked()
    stacked.unstack(net, layers)
    x = torch.randn(2, 6)
    torch.testing.assert_close(net(x), _Net()(x))


def test_initial_A_is_shared_or_own_and_B_is_zero():
    _, layers = _stacked()
    seeds = [dict.fromkeys(layers, 5), dict.fromkeys(layers, 5), dict.fromkeys(layers, 6)]
    stacked.initialise(layers, seeds)
    for layer in layers.values():
        assert torch.equal(layer.A[0], layer.A[1])
        assert not torch.equal(layer.A[0], layer.A[2])
        assert layer.A.abs().max() <= layer.frozen.in_features**-0.5
        assert layer.B.abs().sum() == 0


@pytest.mark.parametrize("target", ["attentoin", "projection"])
def test_a_target_that_is_unknown_or_matches_nothing_is_named(target):
    with pytest.raises(ValueError, match=target):
        stacked.targeted(_Net(), [target], UNet.targets)


# --- convolutions


class _Conv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        block = torch.nn.Module()
        block.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.resnets = torch.nn.ModuleList([block])
        self.downsamplers = torch.nn.ModuleList([torch.nn.Module()])
        self.downsamplers[0].conv = torch.nn.Conv2d(4, 5, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        return self.downsamplers[0].conv(torch.tanh(self.resnets[0].conv1(x)))


def test_convolutions_equal_one_merged_model_each_and_gradients_see_no_neighbour():
    holder = torch.nn.Module()
    holder.net = _Conv().requires_grad_(False)
    names = ["net.downsamplers.0.conv", "net.resnets.0.conv1"]
    assert set(names) <= set(stacked.targeted(holder, ["convolution"], UNet.targets))
    layers = stacked.stack(holder, names, K, 2, 0.5)
    torch.manual_seed(2)
    with torch.no_grad():
        for p in stacked.parameters(layers):
            p.normal_()
    x = torch.randn(K * B, 3, 8, 6)
    together = holder.net(x).view(K, B, 5, 4, 3)
    together[1].square().sum().backward()
    for p in stacked.parameters(layers):
        assert p.grad[1].abs().sum() > 0
        assert p.grad[[0, 2]].abs().sum() == 0
    for k in range(K):
        alone = torch.nn.Module()
        alone.net = _Conv()
        with torch.no_grad():
            for name, (A, B_) in stacked.factors(layers, k).items():
                weight = alone.get_submodule(name).weight
                weight += (B_ @ A).view(weight.shape)
        torch.testing.assert_close(together[k], alone.net(x.view(K, B, 3, 8, 6)[k]), atol=1e-5, rtol=1e-4)


def test_a_batch_of_some_adapters_is_theirs():
    net, layers = _stacked()
    x = torch.randn(2 * B, 7, 6)
    stacked.select(layers, torch.tensor([2, 0]))
    some = net(x).view(2, B, 7, 3)
    for place, k in enumerate((2, 0)):
        torch.testing.assert_close(some[place], _alone(layers, k)(x.view(2, B, 7, 6)[place]), atol=1e-5, rtol=1e-5)
