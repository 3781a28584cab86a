"""The embedded model's tokenizer: known words whole, other words in pieces, any byte at the last."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROLES = ("system", "user", "assistant", "tool")
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")

# ChatML. Every text is led by a space, so that a word is the same token at the start of a turn and inside a sentence.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n ' + message['content'] | trim + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def build_tokenizer(texts: Iterable[str], pieces: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build the tokenizer from every text of the world and from the pieces that invented names are made of.

    Words are matched greedily from the left against a fixed vocabulary over the byte-level alphabet, so nothing is
    ever unknown and decoding gives the text back exactly. Long numbers are read three digits at a time.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    words = {word for text in texts for word, _ in split.pre_tokenize_str(" " + text)}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for piece in pieces:
        words.update(byte_level.pre_tokenize_str(form)[0][0] for form in (piece, f" {piece}"))
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words.update(byte_level.pre_tokenize_str(f" {letter}")[0][0] for letter in letters)
    words.update(ROLES)
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *sorted(words)]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    inner = Tokenizer(
        models.WordPiece(ids, unk_token=SPECIAL[0], continuing_subword_prefix="", max_input_chars_per_word=10_000)
    )
    inner.pre_tokenizer = split
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
