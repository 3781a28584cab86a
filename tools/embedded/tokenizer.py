"""The embedded model's tokenizer: known words whole, other words in pieces, any byte at the last."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROLES = ("system", "user", "assistant", "tool")
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")

# Where a word follows a quotation mark or a bracket, this mark and a space are put between them, so that a word is the
# same token in a sentence and inside JSON. Decoding takes both out again. (A code point of the private use area.)
_GLUE = "\ue000"

# One token each: a tool-call tag, an ending such as 's, a word, up to three digits, a run of punctuation, even where
# single spaces stand inside it.
_SIGN = r"(?!</?tool_call>)[^\s\p{L}\p{N}]"
_RUN = rf" ?(?:{_SIGN})+(?: (?:{_SIGN})+)*"
_WORDS = rf"'(?:s|t|re|ve|m|ll|d)\b| ?</?tool_call>| ?\p{{L}}+| ?\p{{N}}{{1,3}}|{_RUN}|\s+(?!\S)|\s"

# ChatML. Every text is led by a space, so that a word is the same token at the start of a turn and inside a sentence.
CHAT_TEMPLATE = """\
{%- macro turn(role, text) -%}
{{ '<|im_start|>' + role + '\\n ' + text | trim + '<|im_end|>\\n' }}
{%- endmacro -%}
{%- if tools -%}
{%- set schemas = namespace(text='Tools:') -%}
{%- for tool in tools -%}
{%- set schemas.text = schemas.text + '\\n' + (tool.function if tool.function is defined else tool) | tojson -%}
{%- endfor -%}
{{ turn('system', schemas.text) }}
{%- endif -%}
{%- for message in messages -%}
{%- set said = namespace(text=message['content'] or '') -%}
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call.function if call.function is defined else call -%}
{%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}
{%- set said.text = said.text + ' <tool_call>{"name": "' + function.name + '", "arguments": ' + arguments
    + '}</tool_call>' -%}
{%- endfor -%}
{{ turn(message['role'], said.text) }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def build_tokenizer(texts: Iterable[str], pieces: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build the tokenizer from every text of the world and from the pieces that invented names are made of.

    Words are matched greedily from the left against a fixed vocabulary over the byte-level alphabet, so nothing is
    ever unknown and decoding gives the text back exactly. Long numbers are read three digits at a time.
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r'"(?=[\p{L}\p{N}])'), f'"{_GLUE} '),
            normalizers.Replace(Regex(r"\((?=[\p{L}\p{N}])"), f"({_GLUE} "),
        ]
    )
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = {word for text in texts for word, _ in split.pre_tokenize_str(normalizer.normalize_str(" " + text))}
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
    inner.normalizer = normalizer
    inner.pre_tokenizer = split
    inner.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(f"{_GLUE} ", ""), decoders.Replace(_GLUE, "")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
