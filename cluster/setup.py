"""What every actor of a run is given at its start: small, picklable, free of the scenario's machinery."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from rayemu.cluster.link import ZmqSettings
from rayemu.machine import cores
from rayemu.model.agreement import Arithmetic
from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement
from rayemu.profiling.meters import Meters
from rayemu.protocol.config import ProtocolConfig

# What a seeded generator is for (see `run` for others): which frames faults hit, and which are timed.
MESSAGE_FAULT_DRAWS, RANDOM_FRAMES = 2, 4
ANY_MACHINE = "*"  # in place of a host's address: each actor listens at that of its own machine


@dataclass(frozen=True, eq=False)
class Setup:
    """A run's fixed data, the same for all actors. Times in seconds."""

    run_id: str
    config: ProtocolConfig
    spec: ModelSpec
    placement: Placement
    module_to_node: np.ndarray  # [M] int32
    seed: int
    heartbeat: float
    machine_of: np.ndarray  # [M] int32, the machines by number
    blas_threads: int | None  # None: as many as the modules of a machine have cores each
    zmq: ZmqSettings | None  # None: frames go by actor calls
    links: dict[int, float]  # link level -> bytes per second of a module's port; others are not paced
    directory: str  # scratch of the run on each machine: sockets and record files
    arithmetic: Arithmetic  # the driver's, like which all must compute
    record: bool = True
    profile: bool = False  # functions are metered
    coretype: str | None = None  # the BLAS kernels to give to processes that would choose their own

    @property
    def modules(self) -> int:
        """Number of modules M."""
        return len(self.module_to_node)

    def fitted(self, module: int) -> Setup:
        """Return the setup as fits a module on this machine, whose cores it shares with others."""
        own = cores()
        neighbours = int((self.machine_of == self.machine_of[module]).sum())
        config = replace(self.config, modules_per_core=neighbours / own)
        return replace(self, config=config, blas_threads=self.blas_threads or max(1, own // neighbours))

    def meters(self, name: str, process: str) -> Meters | None:
        """Meter this process from now on, where the run is profiled: before anything holds a function."""
        return Meters(self.scratch(), name, process) if self.profile else None

    def scratch(self) -> str:
        """Make sure that the scratch directory exists on this machine, and return it."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        return self.directory
