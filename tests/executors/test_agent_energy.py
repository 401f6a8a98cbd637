"""Energy is what NVML says, and nothing where it says nothing. NVML itself is played here: no test machine has it."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from epara_executors.agent.energy import NvmlReader, find_energy_reader

from epara_opt.control.ports import DeviceObservation


class NVMLError(Exception):
    pass


def fake_nvml(*energies_mj, broken=False):
    """Devices by their reading; None: a device that cannot tell."""

    def init():
        if broken:
            raise NVMLError("Driver Not Loaded")

    def energy(index):
        if energies_mj[index] is None:
            raise NVMLError("Not Supported")
        return energies_mj[index]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: len(energies_mj),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: f"gpu {index}",
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


def test_millijoules_become_joules_and_a_device_that_cannot_tell_is_left_out():
    read = NvmlReader(fake_nvml(1_500, None)).read()
    assert read == [DeviceObservation(kind="gpu", index=0, name="gpu 0", energy_j=1.5)]


@pytest.mark.parametrize("module", [None, fake_nvml(1, broken=True)])
def test_without_the_library_or_its_driver_there_is_no_reader(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)  # None: importing it fails
    assert find_energy_reader() is None


def test_what_was_read_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(2_000))

    async def scenario():
        from epara_executors.agent.echo_launcher import EchoLauncher
        from epara_executors.agent.executor import Executor
        from epara_executors.agent.persistence import CommittedStore
        from epara_executors.agent.state import StateReader

        store = CommittedStore(tmp_path)
        executor = Executor("a", launcher=EchoLauncher(), store=store, socket_dir=tmp_path, max_devices={})
        reader = StateReader(executor, energy=find_energy_reader())
        looking = asyncio.create_task(reader.run())
        async with asyncio.timeout(10):
            while not (devices := reader.state(now=0.0).devices):
                await asyncio.sleep(0)
        looking.cancel()
        store.close()
        return devices

    assert asyncio.run(scenario())[0].energy_j == 2.0
