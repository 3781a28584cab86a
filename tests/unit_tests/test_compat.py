"""Each private or renamed name of another library is there, and does what it is read for."""

import ast
import asyncio
import logging
import re
import sys
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch
import transformers
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import context, event_stream, log_stream
from langchain_core.tracers._streaming import _V2StreamingCallbackHandler
from langchain_core.tracers.stdout import ConsoleCallbackHandler
from models import FAMILIES, tiny_model, tiny_tokenizer
from transformers import DynamicCache, LlamaConfig, MambaConfig, MambaForCausalLM, StaticCache, TextGenerationPipeline

import semgrad_guard
from semgrad_guard import SemGradScorer, UnsupportedModelError, _compat
from semgrad_guard.model.replay import mirror

PACKAGE = Path(semgrad_guard.__file__).parent
ROOT = Path(__file__).parents[2]
# Methods that LangChain offers to its subclasses; see the docstring of _compat.py.
OFFERED = {
    "_acall_with_config",
    "_atransform_stream_with_config",
    "_call_with_config",
    "_combine_llm_outputs",
    "_get_ls_params",
    "_identifying_params",
    "_llm_type",
    "_transform_stream_with_config",
}


@pytest.fixture
def first_scorer():
    """Let the test build the first scorer of a process."""
    _compat.warn_of_untested_versions.cache_clear()
    yield
    _compat.warn_of_untested_versions.cache_clear()


@pytest.mark.parametrize("name", _compat.PLACES)
def test_a_name_is_where_it_is_looked_for(name):
    assert getattr(_compat, name).__class__ is not None


def test_other_names_are_missing_as_in_any_module():
    assert not hasattr(_compat, "Missing")


def test_the_pinned_version_is_called_tested():
    constraints = ROOT / "constraints.txt"
    pinned = re.search(r"^transformers==(\d+\.\d+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned[1] in _compat.TESTED_TRANSFORMERS
    assert [*_compat.TESTED_TRANSFORMERS] == sorted(_compat.TESTED_TRANSFORMERS)  # the last is the newest


@pytest.mark.parametrize("version", ["5.25.0", "5.40.1", "6.0.0", "5.25.0.dev0"])
def test_a_newer_minor_version_is_named(version):
    message = _compat.untested_transformers(version)
    assert message is not None
    assert version in message
    assert "5.23, 5.24" in message


@pytest.mark.parametrize("version", ["5.24.9", "5.23.0", "5.0.0", "5.9.1"])
def test_tested_and_older_versions_are_used_without_a_word(version):
    assert _compat.untested_transformers(version) is None


@pytest.mark.usefixtures("first_scorer")
def test_the_first_scorer_warns_and_no_other_does(monkeypatch):
    monkeypatch.setattr(_compat, "installed", lambda name: {"transformers": "9.9.0"}[name])
    with pytest.warns(UserWarning, match="9.9.0 is newer") as warned:
        scorer = SemGradScorer(tiny_model(), tiny_tokenizer())
    assert [warning.filename for warning in warned] == [__file__]
    scorer.adjusted(reduction="sum")  # a second warning would be an error
    SemGradScorer(tiny_model(), tiny_tokenizer())


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


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_cache_by_its_name_and_fills_it(family):
    decoder = tiny_model(family).get_decoder()
    cache = DynamicCache(config=decoder.config)
    with torch.no_grad():
        decoder(torch.tensor([[5, 6, 7]]), use_cache=True, **{_compat.cache_argument(decoder): cache})
    assert cache.get_seq_length() == 3


def test_a_state_space_model_is_refused_by_what_it_keeps():
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=131, state_size=4)).eval()
    with pytest.raises(UnsupportedModelError, match="state-space models are not supported"):
        SemGradScorer(model, tiny_tokenizer(), token_position=1)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_generation_s_cache_is_given_by_whatever_name(name):
    cache = DynamicCache()
    assert _compat.generated_cache({"sequences": torch.ones(1, 1), name: cache}) is cache
    assert _compat.generated_cache({name: None}) is None
    assert _compat.generated_cache({name: ((torch.ones(1), torch.ones(1)),)}) is None
    assert _compat.generated_cache({}) is None


@pytest.mark.parametrize("settings", [{}, {"use_cache": False}])
def test_generating_and_scoring_use_nothing_that_transformers_deprecates(caplog, settings):
    from transformers.utils import logging as theirs

    said = logging.getLogger("transformers")
    said.addHandler(caplog.handler)
    level = theirs.get_verbosity()
    theirs.set_verbosity_warning()
    theirs.warning_once.cache_clear()  # it says everything once in a process
    try:
        scorer = SemGradScorer(tiny_model(), tiny_tokenizer())
        scorer.score(scorer.generate([[5, 6, 7, 8]], max_new_tokens=2, **settings))
    finally:
        said.removeHandler(caplog.handler)
        theirs.set_verbosity(level)
    assert [record.getMessage() for record in caplog.records if "deprecated" in record.getMessage()] == []


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


def test_a_cache_is_cut_to_rows_and_positions():
    model, cache = tiny_model(), DynamicCache()
    with torch.no_grad():
        model(torch.arange(1, 13).reshape(2, 6), use_cache=True, **{_compat.cache_argument(model.get_decoder()): cache})
    whole = _compat.plain_keys_and_values(cache, 6)
    for rows in ([0, 1], [1], [1, 0]):
        cut = _compat.plain_keys_and_values(_compat.sliced_cache(cache, 6, rows, 4), 4)
        for parts, wholes in zip(cut, whole, strict=True):
            for part, all_of_it in zip(parts, wholes, strict=True):
                assert torch.equal(part, all_of_it[rows, :, :4])
    assert _compat.sliced_cache(cache, 5, [0], 4) is None


def test_other_caches_are_not_read():
    model = tiny_model()
    assert _compat.plain_keys_and_values(StaticCache(config=model.config, max_cache_len=8), 6) is None
    assert _compat.plain_keys_and_values(DynamicCache(config=model.config, offloading=True), 6) is None
    assert _compat.plain_keys_and_values(DynamicCache(config=model.config), 0) is None  # empty


def test_attention_layers_keep_no_running_state():
    assert _compat.linear_layers(tiny_model()) == [False] * tiny_model().config.num_hidden_layers
    assert _compat.linear_layers(tiny_model("qwen3-next")) == [True, False] * 2


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


def test_files_are_unpacked_whole():
    assert _compat.unpacked_gguf()["quantization_config"].dequantize


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


async def test_handlers_that_stream_are_told_from_others():
    from langgraph.pregel import _messages

    assert _compat.streams(event_stream._AstreamEventsCallbackHandler())  # needs a loop
    assert _compat.streams(log_stream.LogStreamCallbackHandler())
    assert _compat.streams(type("Second", (BaseCallbackHandler, _V2StreamingCallbackHandler), {})())
    assert _compat.streams(_messages.StreamMessagesHandler(print, subgraphs=False))
    assert not _compat.streams(ConsoleCallbackHandler())


def test_tracers_join_a_run_by_the_variables_listed():
    before, variable = list(context._configure_hooks), ContextVar("variable", default=None)
    try:
        context.register_configure_hook(variable, inheritable=True)
        assert {context.tracing_v2_callback_var, variable} <= {*_compat.tracing_variables()}
    finally:
        context._configure_hooks[:] = before


def test_what_runs_inside_a_run_reads_its_configuration():
    inside = RunnableLambda(lambda _: _compat.var_child_runnable_config.get()["tags"])
    assert inside.invoke(1, {"tags": ["mine"]}) == ["mine"]


async def test_a_chat_model_answers_without_a_run_of_its_own():
    class Runs(BaseCallbackHandler):
        def on_chat_model_start(self, *args, **kwargs):
            raise AssertionError("a run was begun")

    Runs.raise_error = True
    llm = FakeListChatModel(responses=["one", "two"], callbacks=[Runs()])
    assert _compat.generate_with_cache(llm, [HumanMessage("?")], None, {}).generations[0].text == "one"
    answer = await _compat.agenerate_with_cache(llm, [HumanMessage("?")], None, {})
    assert answer.generations[0].text == "two"


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


def test_the_key_of_the_checkpointer_is_found_where_it_really_is(monkeypatch):
    from langgraph._internal._constants import CONFIG_KEY_CHECKPOINTER

    monkeypatch.setitem(sys.modules, "langgraph.constants", None)  # as langgraph 2.0 may have it
    assert _compat.has_checkpointer({CONFIG_KEY_CHECKPOINTER: object()})


def test_what_steers_a_graph_is_no_failure():
    from langgraph.errors import GraphInterrupt

    assert _compat.steers_a_graph(GraphInterrupt())
    assert not _compat.steers_a_graph(ValueError("no"))


async def test_a_connection_tells_whether_the_head_of_a_request_has_come():
    import uvicorn

    async def app(scope, receive, send): ...

    config = uvicorn.Config(app, log_config=None)
    config.load()
    connection = _compat.H11Protocol(config, uvicorn.server.ServerState(), {})
    connection.connection_made(transport := asyncio.Transport({"peername": ("127.0.0.1", 1)}))
    connection.data_received(b"GET / HTTP/1.1\r\n")
    assert connection.cycle is None
    connection.data_received(b"Host: here\r\n\r\n")
    assert not connection.cycle.response_complete
    assert (connection.loop, connection.transport) == (asyncio.get_running_loop(), transport)


def test_a_mirror_of_a_module_has_its_own_hooks_and_children():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential())
    twin, heard = mirror(module), []
    twin[0] = torch.nn.Identity()
    twin.register_forward_pre_hook(lambda *_: heard.append(1))
    twin.register_forward_pre_hook(lambda *_, **__: heard.append(2), with_kwargs=True)
    twin.register_forward_hook(lambda *_, **__: heard.append(3), with_kwargs=True, always_call=True)
    module(torch.ones(2))
    assert heard == []
    assert torch.equal(twin(torch.ones(2)), torch.ones(2))
    assert heard == [1, 2, 3]
    assert isinstance(module[0], torch.nn.Linear)


def test_children_that_are_none_or_shared_are_children():
    module, child = torch.nn.Module(), torch.nn.Linear(1, 1)
    module.first, module.second = child, child
    module.register_module("none", None)
    assert vars(module)[_compat.CHILDREN] == {"first": child, "second": child, "none": None}


def test_operations_and_storages_are_told_apart():
    class Seen(_compat.TorchDispatchMode):
        operators = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.operators += (_compat.operator(func),)
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        result = torch.ones(2, 2) @ torch.ones(2, 2)
    assert torch.ops.aten.mm in seen.operators
    assert _compat.storage_key(result.untyped_storage()) == _compat.storage_key(result[0].untyped_storage())
    empty = torch.empty(0), torch.empty(0)
    assert len({_compat.storage_key(tensor.untyped_storage()) for tensor in empty}) == 2
    assert _compat.tree_leaves(({"a": 1}, [2])) == [1, 2]


def private(name):
    return name.startswith("_") and not name.startswith("__")


def names_given(tree):
    """Give the names that a module itself gives to functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def private_names_read(tree):
    """Give the private names that a module imports from other libraries, or reads from objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.module.startswith(("semgrad_guard", "__future__")):
            yield from filter(private, [*node.module.split("."), *(alias.name for alias in node.names)])
        elif isinstance(node, ast.Import):
            yield from filter(private, [part for alias in node.names for part in alias.name.split(".")])
        elif isinstance(node, ast.Attribute) and private(node.attr):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            texts = (given.value for given in node.args if isinstance(given, ast.Constant))
            yield from (text for text in texts if isinstance(text, str) and private(text))


def test_private_names_of_others_are_read_nowhere_else():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    compat = trees.pop(PACKAGE / "_compat.py")
    ours = {name for tree in trees.values() for name in names_given(tree)} | OFFERED
    read = {(str(path.relative_to(PACKAGE)), name) for path, tree in trees.items() for name in private_names_read(tree)}
    assert {(path, name) for path, name in read if name not in ours} == set()
    assert {*private_names_read(compat)} - ours  # the test sees what it looks for


def test_nothing_is_imported_before_it_is_used():
    tree = ast.parse((PACKAGE / "_compat.py").read_text(encoding="utf-8"))
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imported}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
