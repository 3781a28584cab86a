"""The scorer's contract: order, subsets, paths, positions, limits, and that the user's model stays as it was."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import INST, VOCABULARY, tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from semgrad_guard import (
    ChatSemGrad,
    ConfigurationError,
    EmptyResponseError,
    PromptTooLongError,
    Score,
    SemGradScorer,
    TokenPositionError,
    UnsupportedModelError,
)
from semgrad_guard.model.chat_template import encode_chat, user_text_position
from semgrad_guard.scoring.semgrad import mean_abs_outer
from semgrad_guard.scoring.settings import ScoringSettings


def prompts_of(*lengths, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(5, VOCABULARY) for _ in range(length)] for length in lengths]


BY_LAYER = ("layers", "layers_unweighted", "later", "states")


def numbers(score):
    return [
        value
        for key, value in score.model_dump(exclude={"path", "layer_indices", "more", *BY_LAYER}).items()
        if value is not None
    ]


def close(one, other, tolerance=1e-5):
    return numbers(one) == pytest.approx(numbers(other), rel=tolerance, abs=0)


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(tiny_model(), tiny_tokenizer())


def test_any_order_and_subset_of_generations(scorer):
    generations = scorer.generate(prompts_of(8, 14, 11), max_new_tokens=6)
    other = scorer.generate(prompts_of(9, seed=5), max_new_tokens=4)
    scores = scorer.score(generations)
    mixed = scorer.score([generations[2], other[0], generations[0]])
    assert close(mixed[0], scores[2])
    assert close(mixed[2], scores[0])
    assert close(mixed[1], scorer.score(other)[0])
    assert scorer.score([]) == []


def test_scoring_twice_gives_the_same_numbers(scorer):
    generations = scorer.generate(prompts_of(8, 12), max_new_tokens=6)
    assert scorer.score(generations) == scorer.score(generations)


def test_a_row_scores_the_same_alone_and_in_a_batch(scorer):
    prompts = prompts_of(8, 20, 5)
    together = scorer.score(scorer.generate(prompts, max_new_tokens=6))
    for prompt, score in zip(prompts, together, strict=True):
        assert close(scorer.score(scorer.generate([prompt], max_new_tokens=6))[0], score)


@pytest.mark.parametrize(
    ("family", "prompt_length", "settings", "path"),
    [
        ("llama", 12, {}, "cache"),
        ("mistral-window", 3, {}, "cache"),
        ("mistral-window", 12, {}, "prefix"),
        ("llama", 12, {"use_cache": False}, "prefix"),
        ("llama", 12, {"num_beams": 2}, "prefix"),
        ("llama", 12, {"cache_implementation": "static"}, "prefix"),
    ],
)
def test_the_path_taken_is_recorded_and_changes_nothing(family, prompt_length, settings, path):
    scorer = SemGradScorer(tiny_model(family), tiny_tokenizer(), token_position=2)
    generations = scorer.generate(prompts_of(prompt_length), max_new_tokens=3, **settings)
    (score,) = scorer.score(generations)
    assert score.path == path
    again = scorer.score_ids([generations[0].prompt_ids], [generations[0].response_ids])[0]
    assert again.path == "prefix"
    assert close(score, again)


def test_the_user_s_model_and_tokenizer_stay_as_they_were(monkeypatch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim > 1)
    before = copy.deepcopy(model.state_dict())
    config, template = model.generation_config.to_dict(), tokenizer.chat_template
    state, seed = (tokenizer.padding_side, tokenizer.pad_token), torch.get_rng_state()
    scorer = SemGradScorer(model, tokenizer)

    def unchanged():
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert all(parameter.requires_grad == (parameter.ndim > 1) for parameter in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not model.training
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert model.generation_config.to_dict() == config
        assert ((tokenizer.padding_side, tokenizer.pad_token), tokenizer.chat_template) == (state, template)
        assert torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), seed)

    generations = scorer.generate(prompts_of(7, 9), max_new_tokens=4)
    scorer.score(generations)
    unchanged()
    with pytest.raises(EmptyResponseError):
        scorer.score_ids(prompts_of(9), [[]])
    with pytest.raises(PromptTooLongError):
        scorer.generate(prompts_of(300), max_new_tokens=4)
    monkeypatch.setattr("semgrad_guard.scoring.semgrad.hidden_gradients", lambda *args, **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scorer.score(generations)
    unchanged()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_do_not_depend_on_the_caller_s_grad_mode(scorer, mode):
    generations = scorer.generate(prompts_of(9), max_new_tokens=4)
    expected = scorer.score(generations)[0]
    with mode():
        assert close(scorer.score(scorer.generate(prompts_of(9), max_new_tokens=4))[0], expected)


def test_many_threads_get_the_serial_results(scorer):
    prompts = [prompts_of(length, seed=length) for length in range(6, 18)]
    serial = [scorer.score(scorer.generate(prompt, max_new_tokens=5))[0] for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        threaded = list(pool.map(lambda prompt: scorer.score(scorer.generate(prompt, max_new_tokens=5))[0], prompts))
    assert all(close(one, other) for one, other in zip(serial, threaded, strict=True))


def test_generation_gives_what_model_generate_gives(scorer):
    (prompt,) = prompts_of(10)
    expected = scorer.model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, 10, dtype=torch.long), max_new_tokens=6
    )
    (generation,) = scorer.generate([prompt], max_new_tokens=6)
    assert list(generation.response_ids) == expected[0, 10:].tolist()
    assert generation.prompt_ids == tuple(prompt)
    assert generation.finish_reason == "length"
    assert generation.text == scorer.tokenizer.decode(expected[0, 10:], skip_special_tokens=True)


def test_the_end_of_turn_token_belongs_to_the_response():
    model = tiny_model()
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=2)
    long = scorer.generate(prompts_of(10), max_new_tokens=6)[0].response_ids
    end = long[2]
    generations = scorer.generate(prompts_of(10, 7), max_new_tokens=6, eos_token_id=end)
    assert generations[0].response_ids == long[: long.index(end) + 1]
    assert generations[0].finish_reason == "stop"


def test_positions_are_found_from_the_template():
    model = tiny_model()
    assert SemGradScorer(model, tiny_tokenizer()).token_position == 3
    instruct = tiny_tokenizer(INST)
    assert user_text_position(instruct) == 2
    ids = encode_chat(instruct, [{"role": "user", "content": "abc"}])
    assert instruct.decode(ids[-2]) == "c"
    scorer = SemGradScorer(model, instruct)  # no generation prompt: the last token of the user's text
    assert scorer.token_position == ChatSemGrad.from_model(model, instruct).scorer.token_position == 2
    generations = scorer.generate([ids], max_new_tokens=3)
    assert scorer.score(generations) == SemGradScorer(model, instruct, token_position=2).score(generations)
    bare = SemGradScorer(model, tiny_tokenizer(None))
    with pytest.raises(TokenPositionError, match=r"no chat template.*token_position=t"):
        bare.score(generations)


@pytest.mark.parametrize(("count", "upper"), [(4, (2, 3)), (5, (3, 4)), (6, (3, 4, 5)), (1, (0,))])
def test_the_upper_half_is_that_of_the_authors_code(count, upper):
    model = tiny_model(num_hidden_layers=count)
    assert SemGradScorer(model, tiny_tokenizer()).layers == upper
    assert SemGradScorer(model, tiny_tokenizer(), layers="all").layers == tuple(range(count))


def test_semgrad_is_the_mean_of_its_layers_and_none_unless_asked(scorer):
    (score,) = scorer.score(scorer.generate(prompts_of(9), max_new_tokens=4))
    assert score.semgrad == pytest.approx(sum(score.layers) / len(score.layers))
    assert score.semgrad_unweighted is None
    assert score.finite()
    for wrong in (float("nan"), float("inf"), 0.0, -1e-9):
        for update in ({"layers": (wrong,)}, {"layers_unweighted": (1.0, wrong)}, {"later": ((1.0, wrong),)}):
            assert not score.model_copy(update=update).finite()
        for name in ("semgrad", "paragrad", "exgrad", "hybridgrad", "semgrad_unweighted"):
            assert name in score.model_copy(update={name: wrong}).failure().text
    for name in ("nll", "mean_nll", "mean_entropy", "max_entropy"):
        assert score.model_copy(update={name: 0.0}).finite()  # an entropy may be 0
        assert f"{name} is -1" in score.model_copy(update={name: -1.0}).failure().text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "lower"}, "layers='lower'.*'upper-half', 'all'"),
        ({"layers": [9]}, r"layers=\(9,\).*to 3"),
        ({"layers": []}, r"layers=\[\]"),
        ({"layers": [-1]}, r"layers=\[-1\]"),
        ({"layers": [True]}, r"layers=\[True\]"),
        ({"token_position": 0}, "token_position=0.*expected 1"),
        ({"token_position": True}, "token_position=True"),
        ({"beta": -0.5}, "beta=-0.5"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"scoring": {"tau": 2.0}}, "scoring=.*expected a ScoringSettings"),
        ({"layer": "all"}, "SemGradScorer has no setting 'layer'. Did you mean 'layers'"),
        ({"reduction": "max"}, "reduction='max'"),
        ({"norm": "l3"}, "norm='l3'"),
        ({"tau": 0.0}, "tau=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        SemGradScorer(tiny_model(), tiny_tokenizer(), **settings)


def test_unusable_input_is_refused(scorer):
    with pytest.raises(EmptyResponseError, match="Response 1 has no tokens"):
        scorer.score_ids(prompts_of(12, 12), [[5], []])
    with pytest.raises(ConfigurationError, match="1 prompts and 2 responses"):
        scorer.score_ids(prompts_of(12), [[5], [6]])
    with pytest.raises(ConfigurationError, match="token 136; the model's vocabulary has 131"):
        scorer.score_ids(prompts_of(12), [[VOCABULARY + 5]])
    with pytest.raises(ConfigurationError, match="Prompt 0 has no tokens"):
        scorer.generate([[]], max_new_tokens=3)
    with pytest.raises(ConfigurationError, match="num_return_sequences=2"):
        scorer.generate(prompts_of(12), max_new_tokens=3, num_return_sequences=2, num_beams=2)
    with pytest.raises(TokenPositionError, match="Prompt 0 has 2 tokens"):
        scorer.score_ids(prompts_of(2), [[5]])
    with pytest.raises(PromptTooLongError, match="The prompt has 254 tokens"):
        scorer.generate(prompts_of(254), max_new_tokens=3)


def test_models_that_cannot_be_scored_are_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        SemGradScorer(tiny_model().train(), tokenizer)
    scorer = SemGradScorer(tiny_model(), tokenizer)
    scorer.model.train()
    with pytest.raises(UnsupportedModelError, match="training mode"):
        scorer.score_ids(prompts_of(12), [[5]])
    with torch.inference_mode():
        frozen = tiny_model()
    with pytest.raises(UnsupportedModelError, match="inference_mode"):
        SemGradScorer(frozen, tokenizer)
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        SemGradScorer(encoder_decoder.eval(), tokenizer)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(UnsupportedModelError, match="state-space"):
        SemGradScorer(mamba, tokenizer)
    per_layer = {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0, "laurel_rank": 4}
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    inputs = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
    gemma3n = Gemma3nForCausalLM(Gemma3nTextConfig(**per_layer, **sizes, **heads, **inputs)).eval()
    with pytest.raises(UnsupportedModelError, match="one hidden state per layer"):
        SemGradScorer(gemma3n, tokenizer)


def test_a_module_that_cuts_the_gradient_is_refused():
    """The residual stream goes round it, so nothing would fail by itself."""

    class Cut(torch.nn.Linear):
        def forward(self, input):
            with torch.no_grad():
                return super().forward(input)

    model = tiny_model()
    down = model.model.layers[2].mlp.down_proj
    model.model.layers[2].mlp.down_proj = Cut(down.in_features, down.out_features, bias=False)
    with pytest.raises(
        UnsupportedModelError,
        match=r"do not pass model\.layers\.2\.mlp\.down_proj \(Cut\) in Llama",
    ):
        SemGradScorer(model, tiny_tokenizer())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # called by peft
def test_adapters_count():
    base = tiny_model()
    plain = SemGradScorer(base, tiny_tokenizer(), token_position=3)
    responses = [[7, 9, 11]]
    before = plain.score_ids(prompts_of(9), responses)[0]
    adapted = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    scorer = SemGradScorer(adapted.eval(), tiny_tokenizer(), token_position=3)
    after = scorer.score_ids(prompts_of(9), responses)[0]
    assert after.semgrad != pytest.approx(before.semgrad)
    merged = SemGradScorer(adapted.merge_and_unload(), tiny_tokenizer(), token_position=3)
    assert close(merged.score_ids(prompts_of(9), responses)[0], after)


def test_an_unknown_output_head_is_refused():
    model = tiny_model()
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    model.forward = scaled
    with pytest.raises(UnsupportedModelError, match="transforms its logits"):
        SemGradScorer(model, tiny_tokenizer())


def test_a_span_over_the_whole_response_is_the_response(scorer):
    generations = scorer.generate(prompts_of(8, 14), max_new_tokens=6)
    whole = scorer.score(generations)
    spans = [[(0, len(generation.response_ids))] for generation in generations]
    assert [[close(one, score)] for (one,), score in zip(scorer.score(generations, spans=spans), whole, strict=True)]
    for (one,), score in zip(scorer.score(generations, spans=spans), whole, strict=True):
        assert close(one, score)


def test_spans_of_a_response_are_scored_as_the_definition_says():
    """A span is scored with its own weights, as if the tokens before it were given."""
    model = tiny_model("qwen3")
    scorer = SemGradScorer(model, tiny_tokenizer(), token_position=3, reduction="sum")
    generations = scorer.generate(prompts_of(9, 12), max_new_tokens=7)
    spans = [[(0, 3), (3, 7), (2, 4)], [(5, 6)]]
    scores = scorer.score(generations, spans=spans)
    whole = scorer.score(generations)
    assert [len(own) for own in scores] == [3, 1]
    assert scores[0][0].nll + scores[0][1].nll == pytest.approx(whole[0].nll)
    assert scores[0][2].length == 2
    assert scores[1][0].max_entropy == pytest.approx(scores[1][0].mean_entropy)
    # The first tokens do not depend on those after them: a prefix scores like a response that ends there.
    prefix = scorer.score_ids([generations[0].prompt_ids], [generations[0].response_ids[:3]])[0]
    assert close(scores[0][0], prefix)


def test_shares_add_up_and_single_tokens_carry_all():
    scorer = SemGradScorer(tiny_model(), tiny_tokenizer(), token_position=3)
    (generation,) = scorer.generate(prompts_of(9), max_new_tokens=6)
    doubts = scorer.attribute(generation)
    (score,) = scorer.score([generation])
    assert sum(doubt.share for doubt in doubts) == pytest.approx(1)
    assert [doubt.token for doubt in doubts] == list(generation.response_ids)
    assert -sum(doubt.log_prob for doubt in doubts) == pytest.approx(score.nll)
    assert max(doubt.entropy for doubt in doubts) == pytest.approx(score.max_entropy)
    single = scorer.generate(prompts_of(9), max_new_tokens=1)[0]
    assert [doubt.share for doubt in scorer.attribute(single)] == pytest.approx([1.0])


def test_spans_that_do_not_fit_are_refused(scorer):
    generations = scorer.generate(prompts_of(8), max_new_tokens=4)
    with pytest.raises(EmptyResponseError, match=r"The span \(2, 2\) has no tokens"):
        scorer.score(generations, spans=[[(2, 2)]])
    with pytest.raises(ConfigurationError, match=r"The span \(0, 9\) does not lie in a response of 4 tokens"):
        scorer.score(generations, spans=[[(0, 9)]])
    with pytest.raises(ConfigurationError, match="1 generations and 2 lists of spans"):
        scorer.score(generations, spans=[[(0, 1)], []])


@pytest.mark.parametrize("chunk", [1, 7, 131, 500])
def test_the_norm_of_an_outer_product_does_not_depend_on_the_chunk(chunk):
    draw = torch.Generator().manual_seed(0)
    coefficients = torch.randn(2, 5, 131, generator=draw, dtype=torch.float64)
    hidden = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    expected = torch.einsum("btv,btd->bvd", coefficients, hidden).abs().mean(dim=(1, 2))
    torch.testing.assert_close(mean_abs_outer(coefficients, hidden, chunk), expected)


def test_the_former_names_of_layers_work_for_one_release(scorer):
    with pytest.warns(DeprecationWarning, match="span= is layers= now"):
        former = SemGradScorer(scorer.model, scorer.tokenizer, span=[1, 2])
    assert former.layers == (1, 2)
    with pytest.warns(DeprecationWarning, match="layers="):
        assert former.adjusted(span="all").layers == (0, 1, 2, 3)
    with pytest.warns(DeprecationWarning, match="layers="):
        assert ChatSemGrad.from_model(scorer.model, scorer.tokenizer, span=[1, 2]).scorer.scoring == former.scoring
    (score,) = former.score_ids(prompts_of(9), [[5, 6]])
    with pytest.warns(DeprecationWarning, match="layer_indices"):
        assert score.span == score.layer_indices == (1, 2)
    plain = score.model_dump(mode="json")
    plain["span"] = plain.pop("layer_indices")  # a journal from before
    assert Score.model_validate(plain) == score


def test_settings_named_stand_over_those_of_a_whole(scorer):
    scoring = ScoringSettings(token_position=2, tau=0.5)
    chat = ChatSemGrad.from_model(scorer.model, scorer.tokenizer, scoring=scoring, beta=2.0)
    assert chat.scoring == ScoringSettings(token_position=2, tau=0.5, beta=2.0)
    assert ChatSemGrad.from_llm(chat, layers=[3]).scoring == chat.scoring.changed(layers=[3])
    resolved = chat.scorer.scoring
    assert resolved == chat.scoring.changed(layers=(2, 3))
    assert chat.scorer.adjusted(tau=1.0).scoring == resolved.changed(tau=1.0)
    assert SemGradScorer(scorer.model, scorer.tokenizer, scoring=resolved).scoring == resolved
