"""Where the ranks of a chain stand, and at which network interface they listen."""

import socket

import psutil
import pytest
from epara_executors.worker.chain import interface_of, ranks_here
from epara_executors.worker.launch import Launcher, LaunchError


def test_the_interface_of_loopback_is_found_under_all_its_names() -> None:
    name = interface_of("127.0.0.1")
    assert "127.0.0.1" in {a.address for a in psutil.net_if_addrs()[name]}
    assert interface_of("localhost") == interface_of("127.0.0.9") == name


def test_every_address_of_this_machine_has_its_interface() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for a in addresses:
            if a.family == socket.AF_INET and not a.address.startswith("127."):
                assert interface_of(a.address) == name


@pytest.mark.parametrize(
    ("host", "law"),
    [
        ("192.0.2.1", "address 192.0.2.1: expected one of this machine's network interfaces"),
        ("0.0.0.0", "address 0.0.0.0: expected one of this machine's network interfaces"),
        ("no.such.host.invalid", "address no.such.host.invalid: expected one that this machine can resolve"),
    ],
)
def test_an_address_of_another_machine_is_refused(host: str, law: str) -> None:
    with pytest.raises(ValueError, match=law):
        interface_of(host)


def test_ranks_are_counted_over_all_servers_stage_by_stage() -> None:
    stages = [{"server": s, "devices": d} for s, d in (("a", [0]), ("b", [2, 3]), ("a", [1]))]
    assert ranks_here(stages, "a") == [(0, 0, 0), (3, 2, 1)]
    assert ranks_here(stages, "b") == [(1, 1, 2), (2, 1, 3)]


def test_rank_0_and_nobody_else_needs_a_listening_socket(tmp_path) -> None:
    group = {"group": "g", "tp": 1, "pp": 2, "devices": [0], "server": "a"}
    stages = [{"server": s, "devices": [0]} for s in "ab"]
    with pytest.raises(LaunchError, match="group g: expected a listening socket for rank 0, and for it alone"):
        Launcher(tmp_path).launch({**group, "stages": stages}, "")
