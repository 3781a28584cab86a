"""Fingerprints tell models apart by whatever their weights are held in, and profiles say when only that differs."""

import copy
import warnings

import pytest
import torch
from models import tiny_model, tiny_tokenizer
from scripted import profile as a_profile
from torch import nn

from semgrad_guard import ProfileError, SemGradGuard
from semgrad_guard.calibration.from_examples import bind
from semgrad_guard.demo import embedded_model, embedded_profile
from semgrad_guard.model.fingerprint import fingerprint, precision, template_fingerprint
from semgrad_guard.scoring.scorer import SemGradScorer


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao moves to torchao
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class Packed(torch.Tensor):
    """Integers with a scale, as torchao keeps them; it can do nothing but be taken apart."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_, self.scale_ = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale_"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


def with_packed_weights(scale):
    model = tiny_model()
    data = torch.arange(32 * 48).reshape(32, 48).to(torch.int8)
    model.model.layers[1].mlp.down_proj.weight = nn.Parameter(Packed(data, torch.full((32, 1), scale)))
    return model


def with_buffers(value):
    """Packed weights as GPTQ keeps them."""
    model = tiny_model()
    layer = nn.Module()
    layer.register_buffer("qweight", torch.full((8, 8), value, dtype=torch.int32))
    layer.register_buffer("passing", torch.full((8, 8), value), persistent=False)
    model.model.layers[1].mlp.down_proj = layer
    return model


class WithState(nn.Linear):
    """Saves a state of its own beside its weights, as bitsandbytes does."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = self.absmax


def with_state(value):
    model = tiny_model()
    layer = WithState(48, 32, bias=False)
    layer.weight, layer.absmax = model.model.layers[1].mlp.down_proj.weight, torch.full((6,), value)
    model.model.layers[1].mlp.down_proj = layer
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda value: tiny_model(seed=value),
        lambda value: quantised(tiny_model(seed=value)),
        lambda value: with_packed_weights(float(value)),
        lambda value: with_buffers(value),
        lambda value: with_state(float(value)),
    ],
    ids=["plain", "quantize_dynamic", "several tensors in one", "buffers", "states"],
)
def test_other_weights_have_another_fingerprint_however_they_are_held(build):
    assert fingerprint(build(1)) == fingerprint(build(1))
    assert fingerprint(build(1)) != fingerprint(build(2))


def test_one_quantised_layer_with_other_weights_is_seen():
    models = [quantised(tiny_model()), quantised(tiny_model())]
    layer = tiny_model().model.layers[2].mlp.down_proj
    with torch.no_grad():
        layer.weight.add_(0.5)
    models[1].model.layers[2].mlp.down_proj = quantised(nn.Sequential(layer))[0]
    assert fingerprint(models[0]) != fingerprint(models[1])


def test_what_is_not_saved_does_not_count():
    model = tiny_model()
    before = fingerprint(model)
    model.register_buffer("passing", torch.ones(3), persistent=False)
    assert fingerprint(model) == before
    model.register_buffer("staying", torch.ones(3))
    assert fingerprint(model) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_is_all_that_rounding_changes(dtype):
    one, other = precision(tiny_model()), precision(tiny_model().to(dtype))
    assert one.signs == other.signs
    assert (one.held_in, other.held_in) == ("float32", str(dtype).removeprefix("torch."))
    assert precision(tiny_model(seed=1)).signs != one.signs
    assert precision(quantised(tiny_model())).held_in == "float32 and qint8"


def test_a_profile_says_when_only_the_precision_differs(tmp_path):
    model, tokenizer = embedded_model()
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    with pytest.raises(ProfileError, match=r"in float32; the model given has the same weights in bfloat16"):
        SemGradGuard((rounded, tokenizer), profile=embedded_profile())
    scorer = SemGradScorer(tiny_model(), tiny_tokenizer())
    profile = a_profile().model_copy(update={"bound_to": bind(scorer, "tiny")})
    profile.save(tmp_path / "profile.json")
    profile = profile.load(tmp_path / "profile.json")
    template = template_fingerprint(scorer.tokenizer)
    profile.check(fingerprint(scorer.model), template, precision(scorer.model))
    for other in (tiny_model(seed=1), tiny_model(seed=1).to(torch.bfloat16)):
        with pytest.raises(ProfileError, match=r"with weights .*; the model given has"):
            profile.check(fingerprint(other), template, precision(other))
    same = scorer.model.to(torch.float16)
    with pytest.raises(ProfileError, match=r"tiny in float32; .* the same weights in float16"):
        profile.check(fingerprint(same), template, precision(same))
    with pytest.raises(ProfileError, match=r"with weights .*; the model given has"):
        profile.check(fingerprint(same), template)
