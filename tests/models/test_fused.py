"""Operations with their own backward passes against autograd's, and which layers of a model use them."""

from __future__ import annotations

import copy

import pytest
import torch

from spark_rl.models.fused import LogSoftmaxAt, LogSoftmaxAtOnGPU, RMSNorm, fuse, stock


def test_rms_norm_equals_torch():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(RMSNorm.apply(x, weight, 1e-6), torch.nn.functional.rms_norm(x, (5,), weight, 1e-6))
    assert torch.autograd.gradcheck(lambda *inputs: RMSNorm.apply(*inputs, 1e-6), (x, weight))


@pytest.mark.parametrize("function", [LogSoftmaxAt, LogSoftmaxAtOnGPU])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_token_log_probs_equal_log_softmax(with_entropy, function):
    torch.manual_seed(0)
    logits = (3 * torch.randn(4, 7, dtype=torch.float64)).requires_grad_()
    ids = torch.tensor([0, 6, 3, 3])
    logps, entropy = function.apply(logits, ids, with_entropy)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(logps, expected.gather(-1, ids[:, None])[:, 0])
    if with_entropy:
        torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1))
    else:
        assert entropy is None
    some = slice(None) if with_entropy else slice(1)
    assert torch.autograd.gradcheck(lambda x: function.apply(x, ids, with_entropy)[some], (logits,))


def test_gradients_in_bfloat16_are_those_of_float32_rounded_once():
    torch.manual_seed(0)
    logits = (4 * torch.randn(5, 50)).bfloat16().requires_grad_()
    exact = logits.detach().float().requires_grad_()
    ids, scale = logits.argmax(-1), torch.randn(5)
    (LogSoftmaxAtOnGPU.apply(logits, ids, False)[0] * scale).sum().backward()
    (exact.log_softmax(-1).gather(-1, ids[:, None])[:, 0] * scale).sum().backward()
    torch.testing.assert_close(logits.grad.float(), exact.grad, rtol=0.01, atol=0)


@pytest.mark.parametrize("function", [LogSoftmaxAt, LogSoftmaxAtOnGPU])
def test_hopeless_tokens_keep_their_log_probability(function):
    """exp is cut off far below what float32 can tell from zero, the log-probability is not."""
    logits = torch.tensor([[0.0, -500.0, 1.0]], requires_grad=True)
    logps, _ = function.apply(logits, torch.tensor([1]), False)
    torch.testing.assert_close(logps, logits.detach().log_softmax(-1)[:, 1])
    logps.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.26894, 1.0, -0.73106]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Gemma3"])
def test_fusing_changes_neither_outputs_nor_gradients(family, tiny_model):
    model = tiny_model(family)
    with torch.no_grad():  # a weight of ones would hide what is done with it
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(-0.5, 0.5, parameter.numel()))
    fused = copy.deepcopy(model)
    fuse(fused)
    is_known = [hasattr(vars(m).get("forward"), "stock") for m in fused.modules() if type(m).__name__.endswith("Norm")]
    assert all(is_known) if family != "Gemma3" else not any(is_known), "Gemma's norms add one to their weight"
    ids = torch.arange(2, 12)[None]
    for each in (model, fused):
        each(ids).logits.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), fused.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * p.grad.norm(), name


def test_a_copy_of_a_fused_model_has_norms_of_its_own(tiny_model):
    model = tiny_model("Qwen3")
    fuse(model)
    twin = copy.deepcopy(model)
    ids = torch.arange(2, 12)[None]
    expected = twin(ids).logits
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert torch.equal(twin(ids).logits, expected)
    assert not torch.equal(model(ids).logits, expected)


def test_norms_of_another_kind_are_left_alone():
    class GatedRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, x, gate):
            return torch.nn.functional.rms_norm(x, (4,), self.weight, self.eps) * gate

    class OptionallyGatedRMSNorm(GatedRMSNorm):
        def forward(self, x, gate=1.0):
            return super().forward(x, gate)

    class HeadsRMSNorm(GatedRMSNorm):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 4))

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, (4,), None, self.eps) * self.weight

    x, gate = torch.randn(2, 4), torch.tensor(3.0)
    for module, inputs in ((GatedRMSNorm(), (x, gate)), (OptionallyGatedRMSNorm(), (x, gate)), (HeadsRMSNorm(), (x,))):
        expected = module(*inputs)
        fuse(module)
        assert torch.equal(module(*inputs), expected), type(module).__name__


def test_half_precision_is_left_to_the_model(tiny_model):
    model = tiny_model("Qwen3").bfloat16()
    ids = torch.arange(2, 12)[None]
    expected = model(ids).logits
    fuse(model)
    assert torch.equal(model(ids).logits, expected)


def test_only_some_layers_of_a_class_may_have_a_weight():
    class ScaledRMSNorm(torch.nn.Module):
        def __init__(self, with_scale):
            super().__init__()
            self.eps = 1e-6
            if with_scale:
                self.weight = torch.nn.Parameter(torch.full((4,), 2.0))

        def forward(self, x):
            normed = torch.nn.functional.rms_norm(x, (4,), None, self.eps)
            return normed * self.weight if hasattr(self, "weight") else normed

    model = torch.nn.Sequential(ScaledRMSNorm(True), ScaledRMSNorm(False))
    x = torch.randn(2, 4)
    expected = model(x)
    fuse(model)
    torch.testing.assert_close(model(x), expected)
    assert ["forward" in vars(module) for module in model] == [True, False]


def test_the_models_own_norms_can_be_had(monkeypatch):
    model = torch.nn.Sequential(torch.nn.RMSNorm(4, eps=1e-6))
    fuse(model)
    x = torch.randn(2, 4)
    expected = model(x).clone()
    monkeypatch.setattr(RMSNorm, "forward", staticmethod(lambda ctx, *args: args[0]))
    with stock():
        torch.testing.assert_close(model(x), expected)
