"""SPS by running sums is SPS by its definition, whatever the batches."""

import itertools

import pytest
import torch
from models import tiny_model, tiny_tokenizer

from semgrad_guard import DataError
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.scoring.preservation import preservation

QUESTIONS = [
    ["What is the capital of France?", "Capital of France?", "Name the capital of France."],
    ["Who wrote Hamlet?", "Hamlet was written by whom?"],
    [
        "How old is the moon?",
        "The moon: how old is it?",
        "What is the age of the moon?",
        "Tell me how old the moon is.",
    ],
]


def by_definition(model, tokenizer, last):
    vectors = []
    for group in QUESTIONS:
        rows = []
        for text in group:
            ids = torch.tensor([encode_chat(tokenizer, [{"role": "user", "content": text}])])
            with torch.no_grad():
                hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
            rows.append(torch.stack([state[0, -last:].double() for state in hidden]))
        vectors.append(rows)

    def cosine(one, other):
        return torch.nn.functional.cosine_similarity(one, other, dim=-1)

    same = [torch.stack([cosine(*pair) for pair in itertools.permutations(rows, 2)]).mean(0) for rows in vectors]
    different = [
        cosine(one, other)
        for first, second in itertools.permutations(vectors, 2)
        for one, other in itertools.product(first, second)
    ]
    return (torch.stack(same).mean(0) - torch.stack(different).mean(0)).flip(-1)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_running_sums_give_the_definition(batch):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    expected = by_definition(tiny_model(), tokenizer, 5)
    found = preservation(model, tokenizer, QUESTIONS, last=5, batch=batch)
    torch.testing.assert_close(torch.tensor(found.scores, dtype=torch.float64), expected, rtol=1e-4, atol=1e-6)
    assert (found.questions, found.prompts, len(found.tokens)) == (3, 9, 5)
    assert found.position([2, 3]) == 1 + int(expected[[2, 3]].mean(0).argmax())
    assert not any(module._forward_hooks for module in model.modules())


def test_too_little_to_compare_is_refused():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(DataError, match="at least two questions"):
        preservation(model, tokenizer, QUESTIONS[:1])
    with pytest.raises(DataError, match="the smallest with 1"):
        preservation(model, tokenizer, [["a?", "a?"], ["b?", "c?"]])
    with pytest.raises(DataError, match="were to be looked at"):
        preservation(model, tokenizer, QUESTIONS, last=500)
