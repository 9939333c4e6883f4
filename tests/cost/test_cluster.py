"""Clusters from text, files and device kinds."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.device import tables
from xshard.errors import MeshError


@pytest.mark.parametrize(
    ("text", "device", "hosts", "per_host"),
    [
        ("v100-sxm2-32gb:2x8", "v100-sxm2-32gb", 2, 8),
        ("h100-80gb:8", "h100-sxm-80gb", 1, 8),
        ("H200:4×8", "h200", 4, 8),
        ("a100-sxm4-40gb:1x4", "a100-sxm4-40gb", 1, 4),
        ("tpu-v5e:16x4", "tpu-v5e", 16, 4),
        ("cpu:8", "cpu", 1, 8),
    ],
)
def test_text(text, device, hosts, per_host):
    cluster = Cluster.parse(text)
    assert (cluster.device.name, cluster.hosts, cluster.devices_per_host) == (
        device, hosts, per_host,
    )  # fmt: skip
    assert cluster.num_devices == hosts * per_host
    assert Cluster.from_json(cluster.to_json()) == cluster


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p100:8", "known kinds are a100-sxm4-40gb, a100-sxm4-80gb, cpu, generic, h100"),
        ("h100-80gb", "is no cluster; write"),
        ("h100-80gb:2x", "is no cluster; write"),
        ("h100-80gb:0", "at least one device"),
        ("h100-80gb:0x8", "at least one device"),
        ("", "is no cluster; write"),
        ("/nowhere/my.json", "cannot read the cluster file"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(MeshError, match=message):
        Cluster.parse(text)


def test_own_file(tmp_path):
    path = tmp_path / "mine.json"
    slow = {"name": "ethernet", "bandwidth_bytes_per_s": 3e9, "latency_s": 3e-5}
    path.write_text(
        json.dumps({"device": "h100-80gb", "hosts": 2, "devices_per_host": 4, "inter_host": slow})
    )
    cluster = Cluster.parse(str(path))
    assert cluster.num_devices == 8
    assert cluster.inter_host.bandwidth_bytes_per_s == 3e9
    assert cluster.intra_host == Cluster.parse("h100-80gb:8").intra_host


def own(**changes):
    """A user's own cluster: eight devices that are almost H100s, on two hosts."""
    device = {
        "like": "h100-80gb",
        "name": "mine",
        "memory_bytes": 1e11,
        **changes.pop("device", {}),
    }
    return json.dumps({"device": device, "hosts": 2, "devices_per_host": 4, **changes})


def test_own_figures_on_top_of_a_shipped_table():
    shipped = Cluster.parse("h100-80gb:2x4")
    cluster = Cluster.from_json(own(intra_host={"bandwidth_bytes_per_s": {"value": 2e11}}))
    assert cluster.intra_host == replace(shipped.intra_host, bandwidth_bytes_per_s=2e11)
    assert cluster.inter_host == shipped.inter_host
    assert cluster.device == replace(shipped.device, name="mine", memory_bytes=10**11)
    assert Cluster.from_json(cluster.to_json()) == cluster


def test_cpus_in_a_file_share_the_cores():
    text = '{"device": "cpu", "hosts": 1, "devices_per_host": 8}'
    assert Cluster.from_json(text) == Cluster.parse("cpu:8")


PEAK = {"float32": 1e13}
BAD = [
    ("{", "the cluster file FILE is not JSON: Expecting"),
    ("[]", "the cluster file FILE is not a JSON object; give it, or"),
    ("{}", "FILE: hosts is missing; it must be a whole number above 0"),
    (own(hosts=0), "FILE: hosts must be a whole number above 0, and is 0"),
    (own(devices_per_host="8"), 'devices_per_host must be a whole number above 0, and is "8"'),
    (own(host=1), "FILE: host is unknown; did you mean 'hosts'?"),
    ('{"device": 3, "hosts": 1, "devices_per_host": 1}', "FILE: device must be the name of"),
    ('{"device": "p100", "hosts": 1, "devices_per_host": 1}', "device: no device table 'p100'"),
    (own(device={"like": "p100"}), "device.like: no device table 'p100'; known kinds are"),
    (own(device={"like": None}), "FILE: device.peak_flops is missing; give it, or"),
    (own(device={"memory": 1}), "FILE: device.memory is unknown; did you mean 'memory_bytes'?"),
    (own(device={"memory_bytes": "80GB"}), 'memory_bytes must be a number above 0, and is "80GB"'),
    (own(device={"memory_bytes": -1}), "device.memory_bytes must be a number above 0, and is -1"),
    (own(device={"memory_efficiency": 85}), "must be a number above 0 and up to 1, and is 85"),
    (own(device={"gradient_overlap": 2}), "must be a number from 0 to 1, and is 2"),
    (own(device={"peak_flops": 1e15}), "device.peak_flops must be an object of numbers by name"),
    (own(device={"peak_flops": {"float16": 1e15}}), "device.peak_flops.float32 is missing"),
    (own(device={"peak_flops": PEAK | {"int8": "?"}}), "peak_flops.int8 must be a number above 0"),
    (own(device={"matmul": {"max_efficiency": 1}}), "device.matmul.half_m is missing"),
    (own(device={"matmul": 0.8}), "device.matmul must be an object, and is 0.8"),
    (own(device={"collectives": "tree"}), 'must be "ring" or "shared-memory", and is "tree"'),
    (own(device={"collectives": "shared-memory", "collective_costs": {}}),
     "device.collective_costs.all-gather.latency_per_member_s must be a number"),
    (own(intra_host=5), "FILE: intra_host must be an object, and is 5"),
    (own(inter_host={"latency_s": -1}), "inter_host.latency_s must be a number, 0 or above"),
    (own(inter_host={"bandwidth": 1}), "inter_host.bandwidth is unknown; did you mean 'bandwi"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_file(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(MeshError, match=re.escape(message.replace("FILE", str(path)))):
        Cluster.parse(str(path))


def test_the_documented_file_is_one():
    page = (Path(__file__).parents[2] / "docs" / "cost_model.md").read_text("utf-8")
    [text] = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    cluster = Cluster.from_json(text)
    assert (cluster.device.name, cluster.num_devices) == ("h100-pcie", 32)


@pytest.mark.parametrize("name", list(tables()))
def test_shipped_tables_pass_the_same_checks(name):
    text = json.dumps({"device": tables()[name], "hosts": 1, "devices_per_host": 8})
    assert Cluster.from_json(text).device.name == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cpu", "cpu"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb"),
        ("TPU v5 lite", "tpu-v5e"),
    ],
)
def test_device_kind(kind, name):
    cluster = Cluster.for_devices(kind, 16, hosts=2)
    assert (cluster.device.name, cluster.device.generic) == (name, False)
    assert (cluster.hosts, cluster.devices_per_host) == (2, 8)


def test_unknown_device_kind_is_flagged():
    device = Cluster.for_devices("Quantum 9000", 8).device
    assert device.generic
    assert device.name == "generic (Quantum 9000)"


def test_uneven_hosts():
    with pytest.raises(MeshError, match="evenly"):
        Cluster.for_devices("cpu", 9, hosts=2)


def test_virtual_devices_share_the_cores():
    two, eight = (Cluster.parse(f"cpu:{n}", cores=4).device for n in (2, 8))
    assert two.flops_for("float32") == pytest.approx(4 * eight.flops_for("float32"))
    assert two.memory_bytes == 4 * eight.memory_bytes


@pytest.mark.parametrize("name", list(tables()))
def test_every_figure_has_a_source(name):
    table = tables()[name]
    for key in ("memory_bytes", "memory_bandwidth_bytes_per_s", "launch_overhead_s", "peak_flops",
                "matmul", "intra_host", "inter_host"):  # fmt: skip
        assert _sourced(table[key]), key


def _sourced(figure):
    if isinstance(figure, dict):
        if "source" in figure:
            return True
        return all(_sourced(v) for v in figure.values())
    return isinstance(figure, str)
