"""Small GGUF files, written from the tiny models of `models.py`."""

import gguf
from models import CHATML, VOCABULARY, tiny_model, tiny_tokenizer

_CONTROL, _NORMAL = 3, 1


def tiny_gguf(path, *, template=CHATML, drop=(), fields=None, model=None):
    """Write a Qwen2 of random weights, with the characters of `tiny_tokenizer` and one merge, and give the model.

    `drop` leaves tensors out by their names in the file, and `fields` adds numbers to the header.
    """
    model = model or tiny_model("qwen2")
    config, tokenizer = model.config, tiny_tokenizer(template)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens = [*sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get), "th"]
    tokens += [f"unused{place}" for place in range(len(tokens), VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in tokenizer.all_special_tokens else _NORMAL for token in tokens])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    if template is not None:
        writer.add_chat_template(template)
    for name, number in (fields or {}).items():
        writer.add_uint32(name, number)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        packed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if packed not in drop:
            writer.add_tensor(packed, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
