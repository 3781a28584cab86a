"""Gradients are compared with what small changes do: whatever cuts or bends them is refused by name."""

import copy
import warnings

import pytest
import torch
from models import FAMILIES, tiny_model, tiny_tokenizer
from torch import nn

from semgrad_guard import SemGradScorer, UnsupportedModelError
from semgrad_guard.demo import embedded_model
from semgrad_guard.model.check import check_model

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


class Bent(torch.autograd.Function):
    """The identity, with a backward that multiplies by a factor."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def zeros(output):
    return Bent.apply(output, 0.0)


def half(output):
    return Bent.apply(output, 0.5)


def turned(output):
    return Bent.apply(output, -1.0)


def detached(output):
    return output.detach()


def detached_in_part(output):
    width = output.shape[-1] // 2
    return torch.cat([output[..., :width].detach(), output[..., width:]], -1)


def round_to_steps(output):
    return (output / output.abs().max() * 127).round() * output.abs().max() / 127


class Wrapped(nn.Module):
    """A module whose output goes through something."""

    def __init__(self, inner, after):
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, *args, **kwargs):
        output = self.inner(*args, **kwargs)
        return (self.after(output[0]), *output[1:]) if isinstance(output, tuple) else self.after(output)


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao moves to torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_healthy_models_pass_in_half_precision(family):
    check_model(tiny_model(family).to(torch.bfloat16))


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("family", ["llama", "opt", "qwen3-moe", "deepseek-v3", "gpt-oss"])
def test_healthy_models_pass_whatever_their_weights(family, seed):
    check_model(tiny_model(family, seed=seed).to(PRECISIONS[seed % 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("after", [zeros, half, turned, detached, detached_in_part], ids=lambda after: after.__name__)
@pytest.mark.parametrize("place", ["self_attn", "mlp", "input_layernorm", "self_attn.k_proj", "mlp.act_fn"])
def test_a_module_that_bends_gradients_is_refused_by_name(place, after, dtype):
    """The residual stream goes round it, so nothing would fail by itself."""
    model = tiny_model().to(dtype)
    layer = model.model.layers[2]
    layer.set_submodule(place, Wrapped(layer.get_submodule(place), after))
    with pytest.raises(UnsupportedModelError, match=rf"do not pass model\.layers\.2\.{place} \(Wrapped\) in Llama"):
        check_model(model)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_that_bends_gradients_between_its_modules_is_refused(layer):
    model = tiny_model()
    forward = type(model.model.layers[layer]).forward

    def bent(self, hidden_states, **kwargs):
        return half(forward(self, hidden_states, **kwargs))

    model.model.layers[layer].forward = bent.__get__(model.model.layers[layer])
    with pytest.raises(UnsupportedModelError, match=rf"do not pass model\.layers\.{layer} \(LlamaDecoderLayer\)"):
        check_model(model)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_cut_between_layers_is_refused(dtype):
    model = tiny_model().to(dtype)
    forward = type(model.model.layers[1]).forward
    model.model.layers[1].forward = lambda *args, **kwargs: detached(forward(model.model.layers[1], *args, **kwargs))
    with pytest.raises(UnsupportedModelError, match=r"do not pass model\.layers"):
        check_model(model)


def test_models_with_quantised_layers_without_a_backward_are_refused():
    """In whole, in a single layer of 28, and in the output head alone."""
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.self_attn\.q_proj \(DynamicQ.* and 26 more in"):
        SemGradScorer(quantised(tiny_model()), tiny_tokenizer())
    model = tiny_model()
    model.model.layers[3].mlp = quantised(model.model.layers[3].mlp)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.3\.mlp\.gate_proj"):
        SemGradScorer(model, tiny_tokenizer())
    model = tiny_model()
    whole = quantised(copy.deepcopy(model))
    model.model.layers[1].mlp.down_proj = whole.model.layers[1].mlp.down_proj
    with pytest.raises(UnsupportedModelError, match=r"do not pass model\.layers\.1\.mlp\.down_proj \(DynamicQ"):
        SemGradScorer(model, tiny_tokenizer())
    model = tiny_model()
    model.lm_head = whole.lm_head
    with pytest.raises(UnsupportedModelError, match=r"do not pass lm_head \(DynamicQuantizedLinear\) in"):
        SemGradScorer(model, tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match=r"Gradients do not pass"):
        SemGradScorer(quantised(embedded_model()[0]), embedded_model()[1])


def test_an_expert_without_a_backward_is_refused_though_no_token_was_sent_to_it():
    class Experts(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.mlp, self.asleep = mlp, quantised(nn.Sequential(nn.Linear(32, 32)))

        def forward(self, hidden_states):
            return self.mlp(hidden_states)

    model = tiny_model()
    model.model.layers[1].mlp = Experts(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.mlp\.asleep\.0 \(DynamicQuantizedLinear\)"):
        check_model(model)


class Rounding(nn.Linear):
    """Rounds what it receives to 8 bits, with a backward as if it did not: as LLM.int8 does."""

    factor = 1.0

    def forward(self, received):
        rounded = received + (round_to_steps(received) - received).detach()
        return Bent.apply(super().forward(rounded), self.factor)


def with_rounding(dtype, kind):
    model = tiny_model().to(dtype)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            rounding = kind(module.in_features, module.out_features, bias=False, dtype=dtype).eval()
            rounding.weight = module.weight
            model.model.set_submodule(name, rounding)
    return model


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_kernels_that_round_their_inputs_pass_with_a_backward_and_only_then(dtype):
    check_model(with_rounding(dtype, Rounding))
    for factor in (0.0, 0.5, -1.0):
        bent = type("Bending", (Rounding,), {"factor": factor})
        with pytest.raises(UnsupportedModelError, match=r"q_proj \(Bending\)"):
            check_model(with_rounding(dtype, bent))


def test_a_kernel_that_loses_its_backward_in_its_first_forward_without_gradients_is_refused():
    """4-bit layers of bitsandbytes do so on processors with AVX512-BF16."""

    class Repacking(nn.Linear):
        packed = False

        def forward(self, received):
            type(self).packed = self.packed or not received.requires_grad
            return zeros(super().forward(received)) if self.packed else super().forward(received)

    with pytest.raises(UnsupportedModelError, match=r"q_proj \(Repacking\)"):
        check_model(with_rounding(torch.float32, Repacking))


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError, ValueError])
def test_a_backward_that_raises_is_refused_by_name(error):
    class Raising(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise error("derivative for int4 is not implemented")

    model = tiny_model()
    model.model.layers[2].mlp.up_proj = Wrapped(model.model.layers[2].mlp.up_proj, Raising.apply)
    with pytest.raises(UnsupportedModelError, match=r"do not pass model\.layers\.2\.mlp\.up_proj \(Wrapped\)"):
        check_model(model)


def test_a_forward_that_does_not_take_gradients_is_refused():
    def refuse(output):
        if output.requires_grad:
            raise RuntimeError("inference only")
        return output

    model = tiny_model()
    model.model.layers[2].mlp.up_proj = Wrapped(model.model.layers[2].mlp.up_proj, refuse)
    with pytest.raises(UnsupportedModelError, match=r"cannot be run with gradients: RuntimeError: inference only"):
        check_model(model)


def test_gradients_that_are_not_finite_are_refused():
    model = tiny_model()
    model.model.layers[2].mlp = Wrapped(model.model.layers[2].mlp, lambda output: Bent.apply(output, float("nan")))
    with pytest.raises(UnsupportedModelError, match=r"do not pass model\.layers\.2\.mlp \(Wrapped\)"):
        check_model(model)


def test_a_model_is_left_as_it_was():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim > 1)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        check_model(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad == (parameter.ndim > 1) for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_the_check_takes_few_forward_passes():
    model, passes = tiny_model(), []
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: passes.append(1))
    check_model(model)
    assert len(passes) <= 20
