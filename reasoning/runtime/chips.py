"""What a chip can do, and the devices of a topology that need not be attached.

    devices, chip = topology("v5p:4x4x8")     128 devices to compile for, by libtpu's own compiler
    devices, chip = topology("cpu:8")         8 simulated devices
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as its maker describes it.

    Attributes:
      name: of the chip.
      memory: bytes that a program may use.
      flops: bfloat16 FLOPs per second at most; None where that is not known, as the rest.
      bandwidth: bytes per second from and to HBM.
      ici: bytes per second between neighbours along one axis of the torus, both directions.
      clock: cycles per second of the cores.
    """

    name: str
    memory: int
    flops: float | None = None
    bandwidth: float | None = None
    ici: float | None = None
    clock: float | None = None


# By the device kind that jax reports. memory: what libtpu 0.0.42 names as available when a program
# needs more (nominal: 16, 95 and 32 GB). flops, bandwidth, ici: cloud.google.com/tpu/docs, "System
# architecture", v5e, v5p and v6e; jax-ml.github.io/scaling-book, "How to think about TPUs". clock:
# flops over those of one cycle, which are 2 * 128 * 128 in each of 4 (v5e) and 8 (v5p) matrix units
# and 2 * 256 * 256 in each of 4 (v6e).
CHIPS = {
    "TPU v5 lite": Chip("v5e", int(15.75 * GIB), 1.97e14, 8.1e11, 9.0e10, 1.50e9),
    "TPU v5": Chip("v5p", int(95.74 * GIB), 4.59e14, 2.77e12, 1.8e11, 1.75e9),
    "TPU v6 lite": Chip("v6e", int(31.25 * GIB), 9.18e14, 1.64e12, 1.8e11, 1.75e9),
}
PLATFORMS = ("v5e", "v5p", "v6e", "cpu")


def chip_of(kind: str) -> Chip:
    """The facts of a device kind.

    Raises:
      ValueError: it is not in the table.
    """
    if kind not in CHIPS:
        raise ValueError(f"device kind {kind!r}: no facts about it; there are {', '.join(CHIPS)}.")
    return CHIPS[kind]


def topology(name: str) -> tuple[list[Any], Chip]:
    """The devices of a topology `KIND:SIZES`, and their chip.

    A TPU's are descriptions that a program can be compiled for and not run on.

    Raises:
      ValueError: an unknown topology, or libtpu is not installed.
    """
    kind, _, sizes = name.partition(":")
    if kind not in PLATFORMS or not re.fullmatch(r"\d+(x\d+)*", sizes):
        raise ValueError(
            f"topology={name!r}: must be a kind of {', '.join(PLATFORMS)} and its sizes, as in "
            "v5p:4x4x8 or cpu:8."
        )
    return _simulated(name, sizes) if kind == "cpu" else _described(name)


def _simulated(name: str, sizes: str) -> tuple[list[Any], Chip]:
    if not sizes.isdigit() or int(sizes) < 1:
        raise ValueError(f"topology={name!r}: a CPU has a number of devices, as in cpu:8.")
    with contextlib.suppress(RuntimeError):  # there are devices already, as many as there are
        jax.config.update("jax_num_cpu_devices", int(sizes))
    devices = jax.devices("cpu")
    if len(devices) < int(sizes):
        raise ValueError(
            f"topology={name!r}: this process has {len(devices)} simulated devices already; "
            "choose at most as many."
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return devices[: int(sizes)], Chip("cpu", memory // int(sizes))


def _described(name: str) -> tuple[list[Any], Chip]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology={name!r}: needs the TPU's compiler; pip install -e '.[tpu]' in a virtual "
            "environment of its own, or choose cpu:8."
        )
    # Without them libtpu asks the network what machine this is, and lets one process in at a time.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-16",
        TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"topology={name!r}: libtpu does not know it: {reason}") from error
    return list(devices), chip_of(devices[0].device_kind)
