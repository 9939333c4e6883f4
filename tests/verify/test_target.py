"""The devices that are compiled for: what their tables say, and what is said where one is short."""

from __future__ import annotations

import importlib.util
import json

import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.device import tables
from xshard.errors import VerifyError
from xshard.verify import target


def test_every_table_but_the_guess_says_how_to_compile_for_its_device() -> None:
    platforms = {name: t.get("compile_for", {}).get("platform") for name, t in tables().items()}
    assert platforms == {
        "a100-sxm4-40gb": "cuda", "a100-sxm4-80gb": "cuda", "cpu": "cpu", "generic": None,
        "h100-sxm-80gb": "cuda", "h200": "cuda", "tpu-v5e": "tpu", "v100-sxm2-32gb": "cuda",
    }  # fmt: skip


def test_a_device_without_a_word_about_it() -> None:
    data = json.loads(Cluster.parse("h100:8").to_json())
    del data["device"]["compile_for"]
    with pytest.raises(VerifyError, match='does not say how to compile for it; add "compile_for"'):
        target.devices_for(Cluster.from_json(json.dumps(data)))


def test_a_cluster_from_a_file_is_compiled_for_too() -> None:
    cluster = Cluster.from_json(Cluster.parse("v100:2x8").to_json())
    assert cluster.device.compile_for == Cluster.parse("v100:2x8").device.compile_for


def test_text_of_nested_fields() -> None:
    fields = {"info": {"cores": 80, "clock_ghz": 1.5}, "name": "V100"}
    assert target.proto_text(fields) == 'info { cores: 80 clock_ghz: 1.5 } name: "V100"'


@pytest.mark.parametrize(
    ("cluster", "module", "message"),
    [
        ("h100:8", "jax_plugins", r"NVIDIA GPUs needs .*pip install 'xshard\[aot-cuda\]'"),
        ("tpu-v5e:8", "libtpu", r"TPUs needs libtpu.*pip install 'xshard\[aot-tpu\]'"),
    ],
)
def test_a_missing_extra_is_named(
    cluster: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        target.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(VerifyError, match=message):
        target.devices_for(Cluster.parse(cluster))


def test_a_plugin_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_cuda_plugin", lambda: "jax_plugins.xla_cuda12")
    monkeypatch.setattr(target.metadata, "version", lambda _: "0.1")
    assert "jax-cuda12-plugin is of version 0.1 and JAX of" in target.missing("cuda")


def test_too_few_virtual_devices() -> None:
    with pytest.raises(VerifyError, match="8 CPU devices; set XLA_FLAGS=--xla_force_host"):
        target.devices_for(Cluster.parse("cpu:16"))
