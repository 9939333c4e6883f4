"""Pipeline schedules as data: who runs what when, checked and simulated, without JAX."""

from xshard.schedules.build import SCHEDULES, build
from xshard.schedules.check import InFlight, check, in_flight, order
from xshard.schedules.schedule import BWD, FWD, WEIGHT, Schedule, Task
from xshard.schedules.simulate import Simulation, Timeline, Times, simulate

__all__ = [
    "BWD", "FWD", "SCHEDULES", "WEIGHT", "InFlight", "Schedule", "Simulation", "Task",
    "Timeline", "Times", "build", "check", "in_flight", "order", "simulate",
]  # fmt: skip
