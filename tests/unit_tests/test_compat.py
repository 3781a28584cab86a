"""Each private or renamed name of another library is there, and does what it is read for."""

import ast
import warnings
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
import transformers
from langchain_core.tracers.event_stream import _AstreamEventsCallbackHandler
from langchain_core.tracers.stdout import ConsoleCallbackHandler
from models import tiny_model
from transformers import DynamicCache, LlamaConfig, StaticCache, TextGenerationPipeline

import semgrad_guard
from semgrad_guard import _compat

PACKAGE = Path(semgrad_guard.__file__).parent
# Modules about another library's insides as a whole, and names of our own that only look foreign.
APART = {"_compat.py"}


def test_the_tests_run_with_a_version_that_is_called_tested():
    assert _compat.untested_transformers() is None
    assert ".".join(transformers.__version__.split(".")[:2]) in _compat.TESTED_TRANSFORMERS


@pytest.mark.parametrize("version", ["5.25.0", "5.40.1", "6.0.0", "5.25.0.dev0"])
def test_a_newer_minor_version_is_named(version):
    message = _compat.untested_transformers(version)
    assert message is not None
    assert version in message
    assert "5.23, 5.24" in message


@pytest.mark.parametrize("version", ["5.24.9", "5.23.0", "5.0.0", "5.9.1"])
def test_tested_and_older_versions_are_used_without_a_word(version):
    assert _compat.untested_transformers(version) is None


def test_the_warning_comes_once(monkeypatch):
    monkeypatch.setattr(_compat, "untested_transformers", lambda: "transformers 9.9.0 is newer")
    _compat.warn_of_untested_versions.cache_clear()
    with pytest.warns(UserWarning, match="9.9.0"):
        _compat.warn_of_untested_versions()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _compat.warn_of_untested_versions()
    _compat.warn_of_untested_versions.cache_clear()


def test_the_hook_tables_are_all_there_are():
    tables = {name for name, value in vars(torch.nn.Linear(1, 1)).items() if "forward" in name and "hooks" in name}
    assert tables == set(_compat.HOOK_TABLES)


class _Old(torch.nn.Module):
    def forward(self, inputs_embeds, past_key_values=None): ...


class _New(torch.nn.Module):
    def forward(self, inputs_embeds, cache=None): ...


class _Both(torch.nn.Module):
    def forward(self, inputs_embeds, cache=None, past_key_values=None): ...


class _Neither(torch.nn.Module):
    def forward(self, inputs_embeds, cache_params=None): ...


@pytest.mark.parametrize(
    ("decoder", "name"), [(_Old(), "past_key_values"), (_New(), "cache"), (_Both(), "cache"), (_Neither(), None)]
)
def test_the_cache_is_given_by_the_name_of_the_signature(decoder, name):
    assert _compat.cache_argument(decoder) == name


def test_a_generation_s_cache_is_given_by_whatever_name():
    cache = DynamicCache()
    assert _compat.generated_cache(type("Output", (), {"past_key_values": cache})()) is cache
    assert _compat.generated_cache(type("Output", (), {"cache": cache})()) is cache
    assert _compat.generated_cache(type("Output", (), {"past_key_values": None})()) is None
    assert _compat.generated_cache(type("Output", (), {})()) is None


def test_plain_keys_and_values_make_the_same_cache_again():
    model = tiny_model()
    ids = torch.arange(1, 8).unsqueeze(0)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :6], use_cache=True, **{_compat.cache_argument(model.get_decoder()): cache})
        expected = model(ids).logits[:, -1]
        held = _compat.plain_keys_and_values(cache, 6)
        again = _compat.cache_of(held)
        found = model(ids[:, 6:], **{_compat.cache_argument(model.get_decoder()): again}).logits[:, -1]
    torch.testing.assert_close(found, expected)
    assert _compat.plain_keys_and_values(cache, 5) is None


def test_other_caches_are_not_read():
    model = tiny_model()
    assert _compat.plain_keys_and_values(StaticCache(config=model.config, max_cache_len=8), 6) is None


def test_attention_layers_keep_no_running_state():
    assert _compat.linear_layers(tiny_model()) == [False] * tiny_model().config.num_hidden_layers


def test_the_commit_of_the_hub_is_read_off_the_configuration():
    model = tiny_model()
    assert _compat.commit_of(model) is None
    model.config._commit_hash = "abc"
    assert _compat.commit_of(model) == "abc"


def test_the_commit_of_the_hub_is_noted_where_it_is_read():
    model = tiny_model()
    _compat.note_commit(model, "abc")
    assert _compat.commit_of(model) == "abc"


def test_nothing_of_a_quantised_file_is_left():
    model = tiny_model()
    model.hf_quantizer, model.config.quantization_config = object(), {"quant_method": "gguf"}
    _compat.forget_quantization(model)
    assert not hasattr(model.config, "quantization_config")
    assert model.to(torch.bfloat16).dtype == torch.bfloat16


def test_files_are_unpacked_whole_where_the_version_can_leave_them_packed(monkeypatch):
    assert _compat.unpacked_gguf()["quantization_config"].dequantize
    monkeypatch.setattr(_compat.transformers, "GgufConfig", None)
    assert _compat.unpacked_gguf() == {}


def test_both_kinds_of_progress_are_silent_for_a_while(capsys):
    from transformers import modeling_gguf_pytorch_utils as unpacking

    def bars():
        list(unpacking.tqdm([1], desc="one"))
        list(transformers.utils.logging.tqdm([1], desc="two"))
        return capsys.readouterr().err

    with _compat.quiet_loading():
        assert bars() == ""
    assert all(name in bars() for name in ("one", "two"))


def test_eager_attention_is_told():
    model = tiny_model()
    model.set_attn_implementation("eager")
    assert _compat.attends_eagerly(model)
    model.set_attn_implementation("sdpa")
    assert not _compat.attends_eagerly(model)
    assert LlamaConfig()._attn_implementation is not None or not _compat.attends_eagerly(tiny_model())


def test_a_pipeline_s_own_settings_are_told():
    from semgrad_guard.demo import embedded_model

    model, tokenizer = embedded_model()
    pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer, max_new_tokens=7)
    settings = _compat.pipeline_settings(pipeline)
    config = settings.get("generation_config")
    assert 7 in (settings.get("max_new_tokens"), getattr(config, "max_new_tokens", None))


def test_handlers_that_stream_are_told_from_others():
    assert issubclass(_AstreamEventsCallbackHandler, _compat.streaming_handler())
    assert not issubclass(ConsoleCallbackHandler, _compat.streaming_handler())


def test_the_variables_of_tracers_are_context_variables():
    variables = _compat.tracing_variables()
    assert len(variables) >= 1
    assert all(isinstance(variable, ContextVar) for variable in variables)


def test_a_graph_with_a_checkpointer_is_told_from_one_without():
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.config import get_config
    from langgraph.graph import START, MessagesState, StateGraph

    seen = []

    def node(state):
        seen.append(_compat.has_checkpointer(get_config().get("configurable", {})))
        return {}

    graph = StateGraph(MessagesState).add_node("node", node).add_edge(START, "node")
    graph.compile(checkpointer=InMemorySaver()).invoke({"messages": []}, {"configurable": {"thread_id": "1"}})
    graph.compile().invoke({"messages": []})
    assert seen == [True, False]


def test_what_steers_a_graph_is_no_failure():
    from langgraph.errors import GraphInterrupt

    assert _compat.steers_a_graph(GraphInterrupt())
    assert not _compat.steers_a_graph(ValueError("no"))


def test_private_names_of_others_are_read_nowhere_else():
    """Imports of private modules or names, and private attributes of what is not `self`, `cls` or a class of ours."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name in APART:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("semgrad_guard"):
                private = [part for part in node.module.split(".") if part.startswith("_") and part != "__future__"]
                private += [alias.name for alias in node.names if alias.name.startswith("_")]
                found += [f"{path.name}: {name} of {node.module}" for name in private]
    dispatch = {
        f"{name}: {part} of torch.utils.{part}" for name in _DISPATCH for part in ("_python_dispatch", "_pytree")
    }
    assert set(found) <= dispatch, found


_DISPATCH = ("tally.py", "metrics.py")  # counting operations is about PyTorch's insides as a whole
