"""Tiny random models and an in-memory tokenizer, so that no test needs a network or a download."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Nothing follows [/INST] when an answer is asked for: the generation prompt is empty.
INST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}[INST]{{ message['content'] }}[/INST]{% endif %}"
    "{% endfor %}"
)

VOCABULARY = 131
_TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
_SMALL = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_GPT = {**_TOKENS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_WINDOW = {"sliding_window": 6}  # shorter than the sequences of the tests
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_OPT = {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}
_JAMBA = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
# Name: configuration class, model class, settings.
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GROUPED),
    "qwen2-window": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {**_GROUPED, **_WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _HEADED),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_GROUPED, "sliding_window": None}),
    "mistral-window": ("MistralConfig", "MistralForCausalLM", {**_GROUPED, **_WINDOW}),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", {**_HEADED, **_WINDOW}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _HEADED),
    "gemma2-softcap": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_HEADED, **_WINDOW, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_HEADED, **_WINDOW}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _SMALL),
    "gpt-j": ("GPTJConfig", "GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _GROUPED),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {**_GROUPED, **_WINDOW}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", {**_GROUPED, "logits_scaling": 4.0}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", _GROUPED),
    "cohere": ("CohereConfig", "CohereForCausalLM", {**_GROUPED, "logit_scale": 0.25}),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", {**_GROUPED, **_WINDOW, "logit_scale": 0.25}),
    "falcon": ("FalconConfig", "FalconForCausalLM", {**_SMALL, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT),
    "bloom": ("BloomConfig", "BloomForCausalLM", {**_TOKENS, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", _HEADED),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {**_GROUPED, "sliding_window": None}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", _GROUPED),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_HEADED, **_EXPERTS, "num_experts": 4}),
    "deepseek-v3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {
            **_SMALL,
            **_EXPERTS,
            **_LATENT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {**_HEADED, **_WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "lfm2": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {**_GROUPED, "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {**_HEADED, **_EXPERTS, **_LINEAR, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "jamba": ("JambaConfig", "JambaForCausalLM", {**_GROUPED, **_JAMBA}),
}


def tiny_model(family="llama", *, peak=1.0, seed=0, **overrides):
    """Build a random model of a family; `peak` scales the output head, so that large values make it very certain."""
    config, model, settings = FAMILIES[family]
    torch.manual_seed(seed)
    model = getattr(transformers, model)(getattr(transformers, config)(**{**settings, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the usual small initial weights hide mistakes in the upper layers
            if parameter.ndim > 1:
                parameter.mul_(4.0)
        model.get_output_embeddings().weight.mul_(peak)
    return model


def tiny_classifier(folder, labels=("contradiction", "entailment", "neutral"), **overrides):
    """Save a random classifier of pairs of texts into a folder, with a tokenizer that spells words."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = dict(enumerate(labels))
    config = transformers.BertConfig(
        vocab_size=64, id2label=names, label2id={name: place for place, name in names.items()}, **{**sizes, **overrides}
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [prefix + chr(code) for prefix in ("", "##") for code in range(ord("a"), ord("z") + 1)]
    vocabulary = {token: place for place, token in enumerate(special + letters)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(template=CHATML):
    """Build a character tokenizer with a chat template."""
    special = ["<pad>", "<|im_end|>", "<|im_start|>", "[INST]", "[/INST]", "user", "assistant"]
    vocabulary = [*special, *sorted({*map(chr, range(32, 127)), "Ċ", "Ġ"})]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = template
    return tokenizer
