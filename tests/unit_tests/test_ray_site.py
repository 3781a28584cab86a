"""A service on Ray is configured as its page says, grows with load, and has keys; nothing is started here."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig

from semgrad_guard.cluster import connected
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.serving.ray_serve import Scale, Site, from_config, running
from semgrad_guard.web.keys import VARIABLE, ApiKeys

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.fixture
def described():
    """The application in the page's configuration for Kubernetes."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = yaml.safe_load(yaml.safe_load(block)["spec"]["serveConfigV2"])["applications"]
    return found


def test_the_configuration_of_the_page_gives_an_application(described, monkeypatch):
    monkeypatch.setenv(VARIABLE, "a-key-that-is-long-enough")
    module, name = described["import_path"].split(":")
    assert getattr(sys.modules[module], name) is from_config
    assert isinstance(from_config(described["args"]), serve.Application)
    site = Site.model_validate(described["args"])
    assert (site.setup.device, site.scale.most, site.terms.policies) == ("cuda", 8, ("abstain", "review"))
    with pytest.raises(ValidationError, match="replica"):
        from_config({"scale": {"replica": 2}})


def test_without_keys_only_this_machine_is_served(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match="there is no API key"):
        from_config({})
    with pytest.raises(ConfigurationError, match="there is no API key"), running(Site(), ApiKeys(), host="::", port=1):
        pytest.fail("it is running")


def test_the_pool_grows_with_load_and_holds_two_batches_a_replica():
    pool = Scale(replicas=2, most=8, gpus=0.5, queue_size=64).pool(batch_size=16, grace=5)
    growing = AutoscalingConfig(**pool["autoscaling_config"])
    assert (growing.min_replicas, growing.max_replicas, growing.target_ongoing_requests) == (2, 8, 16)
    assert (pool["max_ongoing_requests"], pool["max_queued_requests"]) == (32, 64)
    assert pool["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0.5}
    assert Scale(replicas=3).pool(16, 5)["autoscaling_config"]["max_replicas"] == 3


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r'pip install "semgrad-guard\[ray\]"'), connected(cpus=1):
        pytest.fail("it is connected")
