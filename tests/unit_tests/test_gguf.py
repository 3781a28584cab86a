"""GGUF files: wherever a model can be named, unpacked to what they hold, and refused in one line."""

import builtins
import json
import logging
import shutil
import sys

import huggingface_hub
import pytest
import torch
import transformers
from gguf_files import tiny_gguf
from models import CHATML, tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from semgrad_guard import ChatSemGrad, ConfigurationError, SemGradGuard, TokenPositionError, UnsupportedModelError
from semgrad_guard.cli import app
from semgrad_guard.langchain.chat_model import chat_model
from semgrad_guard.model.fingerprint import fingerprint
from semgrad_guard.model.gguf_file import GgufHeader, read_header
from semgrad_guard.model.load import load_model, revision
from semgrad_guard.serving.server import Setup
from semgrad_guard.serving.work import Limits


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf(path)
    return path


def refusal(source, **settings):
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(source, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_weights_and_the_tokenizer_are_those_of_the_file(file):
    model, tokenizer = load_model(file)
    original = tiny_model("qwen2")
    ids = torch.tensor([[7, 20, 30, 99]])
    torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert model.dtype == torch.float32
    assert not model.training
    text = "<|im_start|>Hi you<|im_end|>"
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert tokenizer.chat_template == CHATML
    assert (model.name_or_path, model.config.name_or_path, tokenizer.name_or_path) == (str(file),) * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_the_caller_chooses_the_precision(file, dtype):
    assert load_model(file, dtype=dtype)[0].dtype == torch.bfloat16
    assert ChatSemGrad.from_pretrained(file, dtype=dtype).model.dtype == torch.bfloat16


def test_a_gpu_gets_bfloat16(file, monkeypatch):
    seen = {}

    def load(*args, **settings):
        seen.update(settings)
        raise OSError("far enough")

    monkeypatch.setattr("semgrad_guard.model.load._device", torch.device)
    monkeypatch.setattr("semgrad_guard.model.gguf_file._total_memory", lambda device: None)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    assert "far enough" in refusal(file, device="cuda")
    assert seen["dtype"] == torch.bfloat16


def test_a_precision_or_device_that_is_none_is_refused(file):
    for dtype in ("spam", "int8"):
        with pytest.raises(ConfigurationError, match="expected a precision such as float32"):
            load_model(file, dtype=dtype)
    for device in ("spam", "cuda:99"):
        with pytest.raises(ConfigurationError, match="cannot be used here"):
            load_model(file, device=device)


def test_a_file_is_not_quantised_again(file):
    with pytest.raises(ConfigurationError, match="a GGUF file is unpacked"):
        load_model(file, quantization_config={})


def test_a_model_that_is_loaded_already_cannot_be_loaded_otherwise(file):
    pair = tiny_model(), tiny_tokenizer()
    for source in (pair, ChatSemGrad.from_model(*pair)):
        for setting in ({"dtype": "bfloat16"}, {"device": "cpu"}, {"revision": "main"}):
            with pytest.raises(ConfigurationError, match=f"{next(iter(setting))}: the model is loaded already"):
                chat_model(source, **setting)
    with pytest.raises(ConfigurationError, match="is no hub id"):
        load_model(file, revision="main")


def test_a_folder_that_holds_one_file_stands_for_it(file):
    assert fingerprint(load_model(file.parent)[0]) == fingerprint(load_model(file)[0])


def test_a_folder_that_holds_several_names_them(file, tmp_path):
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(file, tmp_path / name)
    assert refusal(tmp_path).endswith("it holds several GGUF files; name one of them: a.gguf, b.gguf")


def test_safetensors_come_first_in_a_folder(file, tmp_path):
    shutil.copy(file, tmp_path)
    other = tiny_model(seed=5)
    other.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert fingerprint(load_model(tmp_path)[0]) == fingerprint(other)


def test_nothing_beside_the_file_is_read(file, tmp_path):
    shutil.copy(file, tmp_path / "tiny.gguf")
    stray = tiny_tokenizer("{{ messages }}")
    stray.add_tokens(["<spam>"])
    stray.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "spam"}))
    _, tokenizer = load_model(tmp_path / "tiny.gguf")
    assert tokenizer.chat_template == CHATML
    assert "<spam>" not in tokenizer.get_vocab()


def test_a_file_without_the_suffix_is_known_by_its_first_bytes(file, tmp_path):
    shutil.copy(file, tmp_path / "sha256-0123")
    assert load_model(tmp_path / "sha256-0123")[0].dtype == torch.float32


def test_a_guard_takes_it(file):
    guard = SemGradGuard(str(file), score_threshold=1e9)
    message = guard.invoke("hello", max_new_tokens=5)
    assert message.response_metadata["semgrad"]["scores"]["semgrad"] > 0


def test_the_service_takes_it(file):
    worker = Setup(model=str(file), score_threshold=1e9, dtype="bfloat16", limits=Limits(batch_size=2)).worker()
    assert worker._guard.llm.model.dtype == torch.bfloat16


def test_a_hub_id_with_a_file_name_is_fetched(file, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--owner--repo" / "snapshots" / commit / "sub"
    place.mkdir(parents=True)
    shutil.copy(file, place / "tiny.gguf")
    (tmp_path / "models--owner--repo" / "refs").mkdir()
    (tmp_path / "models--owner--repo" / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("owner/repo/sub/tiny.gguf", "owner/repo:sub/tiny.gguf"):
        model, _ = load_model(name)
        assert (model.config.name_or_path, revision(model)) == (name, commit)
    missing = refusal("owner/repo/other.gguf")
    assert "the hub's cache on this machine does not hold it, and the hub cannot be asked (HF_HUB_OFFLINE" in missing


def test_without_a_chat_template_the_error_is_the_usual_one(tmp_path):
    tiny_gguf(tmp_path / "base.gguf", template=None)
    with pytest.raises(TokenPositionError, match="no chat template"):
        SemGradGuard(tmp_path / "base.gguf", score_threshold=1.0)


@pytest.mark.parametrize("field", ["eot", "eom"])
def test_answers_end_at_every_end_token_of_the_file(tmp_path, field):
    tiny_gguf(tmp_path / "x.gguf", fields={f"tokenizer.ggml.{field}_token_id": 4})
    assert load_model(tmp_path / "x.gguf")[0].generation_config.eos_token_id == [1, 4]


def test_answers_end_where_the_template_ends_a_turn(tmp_path):
    template = CHATML.replace("<|im_end|>", "[/INST]")
    tiny_gguf(tmp_path / "x.gguf", template=template)
    assert load_model(tmp_path / "x.gguf")[0].generation_config.eos_token_id == [1, 4]
    tiny_gguf(tmp_path / "x.gguf", template=template.replace("[/INST]\\n", "!\\n").replace("[/INST]", "!"))
    assert load_model(tmp_path / "x.gguf")[0].generation_config.eos_token_id == [1]


def test_it_can_be_saved_and_loaded_again(file, tmp_path):
    model, tokenizer = load_model(file)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, other = load_model(tmp_path)
    assert fingerprint(again) == fingerprint(model)
    assert again.generation_config.eos_token_id == [1]
    assert other.chat_template == tokenizer.chat_template
    text = "<|im_start|>Hi you<|im_end|>"
    assert other(text).input_ids == tokenizer(text).input_ids
    assert model.to(torch.bfloat16).dtype == torch.bfloat16


def test_the_size_is_told_before_the_weights_are_unpacked(file, caplog):
    with caplog.at_level(logging.INFO, "semgrad_guard"):
        load_model(file)
    weights = sum(parameter.numel() for parameter in tiny_model("qwen2").parameters())
    assert caplog.messages[0] == f"tiny.gguf: {weights:,} weights, about 0.0 GiB in float32"


def test_weights_that_cannot_fit_are_refused(file, monkeypatch):
    header = GgufHeader(file, {}, 70_000_000_000)
    monkeypatch.setattr("semgrad_guard.model.gguf_file._total_memory", lambda device: 16 << 30)
    with pytest.raises(UnsupportedModelError, match=r"take 260.8 GiB in float32; cpu has 16.0 GiB"):
        header.check_room(torch.float32, torch.device("cpu"))
    GgufHeader(file, {}, 7_000_000_000).check_room(torch.bfloat16, torch.device("cpu"))


def test_the_extra_is_named_where_it_is_missing(file, monkeypatch):
    real = builtins.__import__
    for missing in ("gguf", "accelerate"):

        def without(name, *args, missing=missing, **kwargs):
            if name == missing:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(builtins, "__import__", without)
            with pytest.raises(ConfigurationError, match=r'pip install "semgrad-guard\[gguf\]"'):
                load_model(file)


def test_files_that_lack_tensors_are_refused(tmp_path):
    tiny_gguf(tmp_path / "x.gguf", drop=("blk.2.ffn_up.weight",))
    assert "it lacks the tensor model.layers.2.mlp.up_proj.weight" in refusal(tmp_path / "x.gguf")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_files_that_are_cut_off_are_refused(file, tmp_path, share):
    whole = file.read_bytes()
    (tmp_path / "x.gguf").write_bytes(whole[: int(share * len(whole))])
    message = refusal(tmp_path / "x.gguf")
    assert any(part in message for part in ("is cut off", "cannot be read", "does not begin"))


@pytest.mark.parametrize("place", [4, 8, 15, 16, 23, 31, 60, 200, b"merges", b"blk.1.ffn_up", b"ffn_up.weight"])
def test_files_with_damaged_headers_are_refused_at_once(file, tmp_path, place):
    damaged = bytearray(file.read_bytes())
    if isinstance(place, bytes):
        place = damaged.index(place) + len(place) + 4
    damaged[place : place + 8] = b"\xff" * 8
    (tmp_path / "x.gguf").write_bytes(damaged)
    refusal(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "does not begin as a GGUF file does"),
        (b"<html>no such page</html>", "does not begin as a GGUF file does"),
        (b"GGUF", "cannot be read"),
        (b"GGUF" + b"\xff" * 200, "cannot be read"),
        (b"GGUF\x03\0\0\0" + b"\0" * 16, "Cannot load"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "pointer of Git LFS"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, content, expected):
    (tmp_path / "x.gguf").write_bytes(content)
    assert expected in refusal(tmp_path / "x.gguf")


def test_one_of_several_parts_is_refused(tmp_path):
    tiny_gguf(tmp_path / "x.gguf", fields={"split.count": 3})
    assert "it is one of 3 parts" in refusal(tmp_path / "x.gguf")


def test_an_architecture_that_cannot_be_unpacked_is_named(file, tmp_path):
    (tmp_path / "x.gguf").write_bytes(file.read_bytes().replace(b"qwen2", b"qwenX"))
    assert "qwenX" in refusal(tmp_path / "x.gguf")


def test_the_header_counts_every_weight(file):
    header = read_header(file)
    assert header.weights == sum(parameter.numel() for parameter in tiny_model("qwen2").parameters())
    assert header.end_ids == {1}


def test_the_command_line_takes_it_and_stays_quiet_with_json(file, monkeypatch):
    monkeypatch.setattr(sys.modules["semgrad_guard.cli.app"], "watched", lambda: True)  # by a terminal
    arguments = ["ask", "hello", "--model", str(file), "--score-threshold", "1e9"]
    spoken = CliRunner().invoke(app, arguments)
    assert spoken.exit_code == 0
    assert "weights, about" in spoken.stderr
    assert "de-quantizing" in spoken.stderr
    silent = CliRunner().invoke(app, [*arguments, "--json"])
    assert silent.exit_code == 0
    assert silent.stderr == ""
    assert "scores" in json.loads(silent.stdout)["verdict"]


def test_the_command_line_s_embedded_model_has_no_precision_to_choose():
    result = CliRunner().invoke(app, ["ask", "hello", "--dtype", "bfloat16"])
    assert result.exit_code == 2
    assert "belong to a --model" in result.stderr
