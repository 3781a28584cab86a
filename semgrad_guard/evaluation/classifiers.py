"""Classifiers of pairs of texts, from local folders: which answers mean the same, and which are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from semgrad_guard.errors import ConfigurationError, PromptTooLongError

BATCH = 16  # pairs of texts that a classifier reads at once
_LABELS = {"ENTAILMENT", "NEUTRAL", "CONTRADICTION"}
_OFFSET = 2  # positions that RoBERTa and its kind keep for themselves


class Entailment:
    """Tells which answers to a question mean the same: those that entail each other, read behind the question.

    The rule is that of semantic entropy (Farquhar et al. 2024).
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load the classifier; the arguments are those of `nli_classifier`, which says what is raised."""
        self.setting = str(folder)
        self._model, self._tokenizer = nli_classifier(folder, device)
        self._entails = _labels_of(self._model)["ENTAILMENT"]

    def meanings(self, question: str, texts: Sequence[str]) -> tuple[int, ...]:
        """Number answers by what they mean, from 0 in the order in which the meanings appear.

        An answer belongs to the first meaning whose first answer it entails and is entailed by. Equal texts mean the
        same without being read. Of n different texts, no more than n (n - 1) pairs are read, 16 at once.

        Raises:
            PromptTooLongError: a pair is too long for the classifier. Cut off, answers would look more alike.
            ArithmeticError: the classifier gave numbers that are not finite.
        """
        firsts: list[str] = []
        numbers: dict[str, int] = {}
        for text in texts:
            if text not in numbers:
                alike = self._entail_each_other(question, text, firsts)
                numbers[text] = alike.index(True) if any(alike) else len(firsts)
                firsts += [] if any(alike) else [text]
        return tuple(numbers[text] for text in texts)

    def _entail_each_other(self, question: str, text: str, others: Sequence[str]) -> list[bool]:
        here, there = f"{question} {text}", [f"{question} {other}" for other in others]
        pairs = [pair for other in there for pair in ((here, other), (other, here))]
        entailed = [
            row.argmax().item() == self._entails for row in read_pairs(self._model, self._tokenizer, pairs, "--nli")
        ]
        return [forth and back for forth, back in zip(entailed[::2], entailed[1::2], strict=True)]


class BEM:
    """A labeler: an answer is right where a classifier says that it means the same as the best of the right ones.

    BEM, BERT matching (Bulian et al. 2022), reads "[CLS] answer [SEP]" and "right answer [SEP] question [SEP]", and its
    second class is "the same", as in the weights `kortukov/answer-equivalence-bem`.
    """

    def __init__(self, folder: Path, device: torch.device, threshold: float = 0.7) -> None:
        """Load the classifier.

        Args:
            folder: of the classifier.
            device: for its weights.
            threshold: the least probability of a right answer, in (0, 1); the SemGrad paper takes 0.7.

        Raises:
            ConfigurationError: the folder holds no classifier of two classes, or the threshold is out of range.
        """
        if not 0 < threshold < 1:
            raise ConfigurationError(f"BEM(threshold={threshold!r}): expected a number between 0 and 1.")
        self._model, self._tokenizer = load_classifier(folder, "BEM", device)
        if self._model.config.num_labels != 2:
            raise ConfigurationError(f"BEM {folder}: it has {self._model.config.num_labels} classes; expected two.")
        self.threshold = threshold

    def __call__(self, question: str, answer: str, right: Sequence[str]) -> bool:
        """Tell whether the probability of "the same" reaches the threshold for one of the right answers.

        An empty answer is wrong.

        Raises:
            PromptTooLongError: question and answers are too long for the classifier.
            ArithmeticError: the classifier gave numbers that are not finite.
        """
        begin, end = self._tokenizer.cls_token, self._tokenizer.sep_token
        pairs = [(f"{begin} {answer} {end}", f"{one} {end} {question} {end}") for one in right if answer.strip()]
        rows = read_pairs(self._model, self._tokenizer, pairs, "BEM", add_special_tokens=False)
        return any(float(row[1]) >= self.threshold for row in rows)


@torch.no_grad()
def read_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    option: str,
    **encoding: Any,
) -> list[Tensor]:
    """Give the probabilities of the classes for each pair of texts, [C] each, in float64.

    Args:
        model: a classifier, as `load_classifier` gives it.
        tokenizer: its tokenizer.
        pairs: of texts, in the order in which they are read.
        option: names the classifier in errors.
        encoding: further keywords of the tokenizer.

    Raises:
        PromptTooLongError: a pair is too long for the classifier.
        ArithmeticError: the classifier gave numbers that are not finite.
    """
    read: list[Tensor] = []
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512) - _OFFSET)
    for start in range(0, len(pairs), BATCH):
        one, other = map(list, zip(*pairs[start : start + BATCH], strict=True))
        inputs = tokenizer(one, other, padding=True, return_tensors="pt", **encoding)
        if (longest := inputs["input_ids"].shape[1]) > most:
            raise PromptTooLongError(
                f"A pair of answers with their question has {longest} tokens; the classifier of {option} reads {most}."
            )
        logits = model(**inputs.to(model.device)).logits.double()
        if not logits.isfinite().all():
            raise ArithmeticError(f"the classifier of {option} gave a number that is not finite")
        read += logits.softmax(-1).cpu()
    return read


def nli_classifier(folder: Path, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a classifier that tells entailment, neutral and contradiction; its label names are upper case afterwards.

    Raises:
        ConfigurationError: the folder holds no classifier, or one with other labels.
    """
    model, tokenizer = load_classifier(folder, "--nli", device)
    labels = _labels_of(model)
    if set(labels) != _LABELS:
        raise ConfigurationError(
            f"--nli {folder}: its labels are {', '.join(labels)}; expected entailment, neutral and contradiction."
        )
    model.config.label2id = dict(labels)
    return model, tokenizer


def _labels_of(model: PreTrainedModel) -> dict[str, int]:
    """Give the places of a classifier's classes by name, in upper case."""
    return {str(label).upper(): int(place) for label, place in (model.config.label2id or {}).items()}


def load_classifier(folder: Path, option: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier with its tokenizer from a local folder, from safetensors and without remote code.

    Raises:
        ConfigurationError: the folder holds no classifier, or one without the weights of its head.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{option} {folder}: cannot load a classifier from there: {error}") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ConfigurationError(
            f"{option} {folder}: the weights of {', '.join(sorted(report['missing_keys']))} are missing. "
            "Give the folder of a classifier that was trained, not that of the model it was made from."
        )
    return model.eval().to(device), tokenizer


def model_folder(method: str, option: str, folder: Path | None) -> Path:
    """Give the folder of a method's own model.

    Raises:
        ConfigurationError: there is none, or it holds no model; the error names the method and the option.
    """
    if folder is None or not (folder / "config.json").is_file():
        value = "not given" if folder is None else f"{str(folder)!r}, where no config.json is"
        raise ConfigurationError(
            f"The method {method!r} needs a model of its own, and {option} is {value}. "
            f"Give a local model's folder: {option} FOLDER."
        )
    return folder
