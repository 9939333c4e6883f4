"""What things cost: time of ops and collectives on a cluster, and the cluster's figures."""

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.compute import op_time_ns
from xshard.cost.device import Device, Link
from xshard.cost.reshard import Resharder, Step

__all__ = ["Cluster", "CollectiveModel", "Device", "Link", "Resharder", "Step", "op_time_ns"]
