"""What cannot be loaded, or not scored as it stands, is refused in one line that says what to do."""

import json
import logging
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from accelerate import cpu_offload, disk_offload, init_empty_weights
from models import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from semgrad_guard import SemGradScorer, UnsupportedModelError
from semgrad_guard.model import checkpoint
from semgrad_guard.model.fingerprint import fingerprint
from semgrad_guard.model.load import load_model, revision

UP = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


def refusal(source, **settings):
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(source, **settings)
    message = str(caught.value)
    assert message.startswith(f"Cannot load {str(source)!r}: ")
    assert "\n" not in message
    return message


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def configure(folder, file="config.json", **settings):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | settings))


def test_missing_tensors_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.pop(UP))
    assert f"it lacks the tensor {UP}; random numbers" in refusal(folder)


def test_many_missing_tensors_are_counted(folder):
    configure(folder, num_hidden_layers=6)
    assert "it lacks 18 tensors (model.layers.4.input_layernorm.weight, " in refusal(folder)


def test_tied_weights_are_not_missing(tmp_path):
    model = tiny_model("qwen2", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert fingerprint(load_model(tmp_path)[0]) == fingerprint(model)


def test_an_untied_head_can_be_missing(folder):
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "it lacks the tensor lm_head.weight" in refusal(folder)


def test_tensors_of_another_shape_are_named(folder):
    change_tensors(folder, lambda tensors: tensors.update({UP: torch.ones(3, 4)}))
    assert f"{UP} is (3, 4), expected (48, 32)" in refusal(folder)


def test_layers_that_the_configuration_leaves_out_are_named(folder):
    configure(folder, num_hidden_layers=3)
    assert "config.json counts too few layers" in refusal(folder)


def test_tensors_that_belong_to_no_part_are_left_out_with_a_warning(folder, caplog):
    change_tensors(folder, lambda tensors: tensors.update({"vision.weight": torch.ones(3)}))
    with caplog.at_level(logging.WARNING, "semgrad_guard"):
        load_model(folder)
    assert "no place for the tensor vision.weight" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_that_are_cut_off_are_refused(folder, share):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(share * len(content))])
    assert "model.safetensors is cut off or damaged" in refusal(folder)


def test_a_pointer_of_git_lfs_is_refused(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
    assert "git lfs pull" in refusal(folder)


def test_a_missing_part_of_the_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="40KB")
    load_model(folder)
    part = sorted(folder.glob("model-00002-*"))[0]
    part.unlink()
    assert f"the weight file {part.name} is missing" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json is damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert f"its weights are pickled ({name})" in message
    assert "safetensors" in message


def test_folders_without_a_model_say_what_they_hold(tmp_path):
    assert "it holds no files; expected config.json with *.safetensors, or one .gguf file" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "it holds notes.txt; expected" in refusal(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": "spam"}', '{"model_type": "t5"}'])
def test_configurations_that_say_nothing_usable_are_refused(folder, content):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    refusal(folder)


def test_a_file_that_is_no_gguf_is_refused(folder):
    assert "name the folder that holds them" in refusal(folder / "model.safetensors")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gpt2", "mistral"])
def test_a_missing_tokenizer_is_not_replaced_by_an_empty_one(tmp_path, family):
    tiny_model(family).save_pretrained(tmp_path)
    assert "its tokenizer is missing" in refusal(tmp_path)


def test_a_damaged_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "its tokenizer is missing or damaged" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./model", "../model", "~/no-such-folder", "tests/no-such-model", "tests/a/b.gguf"]
)
def test_a_missing_folder_is_not_called_a_hub_id(name):
    assert refusal(name).endswith("there is no such file or folder.")
    assert refusal(Path("some-model")).endswith("there is no such file or folder.")


@pytest.mark.parametrize("name", ["a/b/c", "a b", "", "model.gguf", "owner/model.gguf", "https://example.org/x"])
def test_names_that_are_neither_are_refused(name):
    assert "Cannot load" in refusal(name)


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model", "owner/no-such-model/x.gguf"])
def test_a_hub_id_without_network_is_refused_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    message = refusal(name)  # sockets are off in tests
    assert time.monotonic() - started < 2
    assert "there is no such folder, the hub's cache on this machine does not hold it" in message
    assert "the hub cannot be asked (" in message


def test_a_hub_that_says_nothing_is_waited_for_a_little(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.2)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: time.sleep(3))
    assert checkpoint.hub_failure() == "no answer within 0.2 s"


def test_a_hub_that_answers_is_used(monkeypatch):
    class Session:
        def head(self, url, timeout):
            assert url == huggingface_hub.constants.ENDPOINT

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    assert checkpoint.hub_failure() == ""


def test_a_model_in_the_hub_s_cache_needs_no_network(whole, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--owner--name"
    shutil.copytree(whole, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    model, _ = load_model("owner/name")
    assert (model.config.name_or_path, revision(model)) == ("owner/name", commit)
    assert fingerprint(model) == fingerprint(tiny_model())


def refused_pair(model, tokenizer=None):
    with pytest.raises(UnsupportedModelError) as caught:
        SemGradScorer(model, tokenizer or tiny_tokenizer())
    return str(caught.value)


def compiled_forward(model):
    model.forward = torch.compile(model.forward)
    return model


def compiled_in_place(model):
    model.compile()
    return model


def compiled_decoder(model):
    model.model = torch.compile(model.model)
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("change", [torch.compile, compiled_forward, compiled_in_place, compiled_decoder])
def test_compiled_models_are_refused(change):
    assert "LlamaForCausalLM is compiled" in refused_pair(change(tiny_model()))


def test_a_configuration_that_asks_for_tuples_is_refused(folder):
    configure(folder, return_dict=False)
    assert "return_dict=False" in refused_pair(*load_model(folder))


def test_weights_on_the_meta_device_are_refused(folder):
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(tiny_model().config)
    assert "are on the meta device" in refused_pair(model.eval())


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_weights_are_refused(offload, tmp_path):
    model = tiny_model()
    if offload == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    model.hf_device_map = {"": offload}
    assert f"are offloaded to {offload}" in refused_pair(model)


def word_tokenizer(size, **special):
    inner = Tokenizer(WordLevel({f"w{place}": place for place in range(size)}, "w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return tokenizer


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra{place}>" for place in range(40)])
    message = refused_pair(tiny_model(), tokenizer)
    assert "'<extra39>' with id 143" in message
    assert "131 rows" in message


def test_a_tokenizer_of_another_model_is_refused():
    assert "knows 50 tokens, and LlamaForCausalLM has 131" in refused_pair(tiny_model(), word_tokenizer(50))
    message = refused_pair(tiny_model(), word_tokenizer(131, eos_token="w7"))
    assert "ends its answers with token 1 ('w1'), which is no special token" in message


def test_end_tokens_of_the_user_s_choice_are_no_reason_to_refuse():
    model = tiny_model()
    model.generation_config.eos_token_id = [40]  # such as a newline, for a base model
    SemGradScorer(model, tiny_tokenizer())
    model = tiny_model(eos_token_id=None)
    SemGradScorer(model, tiny_tokenizer())
