"""Tiny random models and an in-memory tokenizer, so that no test needs a network or a download."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
FAMILIES = {
    "llama": ("Llama", _GROUPED),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "mistral-window": ("Mistral", {**_GROUPED, "sliding_window": 6}),
    "phi3": ("Phi3", _GROUPED),
    "olmo2": ("Olmo2", _GROUPED),
    "granite": ("Granite", {**_GROUPED, "logits_scaling": 4.0}),
    "gemma2-softcap": ("Gemma2", {**_GROUPED, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 6}),
    "cohere": ("Cohere", {**_GROUPED, "logit_scale": 0.25}),
    "gpt-neox": ("GPTNeoX", _SMALL),
}


def tiny_model(family="llama", *, peak=1.0, seed=0, **overrides):
    """Build a random model of a family; `peak` scales the output head, so that large values make it very certain."""
    name, settings = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**settings, **overrides})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the usual small initial weights hide mistakes in the upper layers
            if parameter.ndim > 1:
                parameter.mul_(4.0)
        model.get_output_embeddings().weight.mul_(peak)
    return model


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
