"""What the ranks of a chain must know of each other: a model's stages at several servers, as one torch group.

Rank 0 keeps the meeting point: a TCP store on a socket that its agent bound, at its server's address and a port of the
system's choice. Whoever reaches it, or the ports of gloo and NCCL, could take part: the network between the servers of
a chain must be trusted.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One rank's view of its chain."""

    tps: tuple[int, ...]  # (stages,) ranks of each
    layers: tuple[tuple[int, int], ...]  # (stages,) of the model, [first, end)
    kinds: tuple[str, ...]  # (stages,) device kind of each
    rendezvous: str  # HOST:PORT at which rank 0 is met
    host: str  # this server's address, as the other servers reach it
    listener: int = -1  # rank 0: descriptor of the socket that listens at `rendezvous`

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> Chain:
        """Of a rank's JSON."""
        return Chain(
            tps=tuple(int(n) for n in fields["tps"]),
            layers=tuple((int(first), int(end)) for first, end in fields["layers"]),
            kinds=tuple(str(k) for k in fields["kinds"]),
            rendezvous=str(fields["rendezvous"]),
            host=str(fields["host"]),
            listener=int(fields.get("listener", -1)),
        )


def ranks_here(stages: Sequence[Mapping[str, Any]], server: str) -> list[tuple[int, int, int]]:
    """(rank, stage, device index) of every rank of a chain that runs at `server`, in rank order."""
    found: list[tuple[int, int, int]] = []
    rank = 0
    for number, stage in enumerate(stages):
        for device in stage["devices"]:
            if stage["server"] == server:
                found.append((rank, number, int(device)))
            rank += 1
    return found


def interface_of(host: str) -> str:
    """The network interface of this machine that has an address. Raises ValueError where none has."""
    import ipaddress  # here, for the agent imports this file and needs neither

    import psutil

    try:
        wanted = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        raise ValueError(f"address {host}: expected one that this machine can resolve: {error.strerror}") from error
    loops = any(ipaddress.ip_address(str(a).partition("%")[0]).is_loopback for a in wanted)
    for name, addresses in psutil.net_if_addrs().items():
        for known in (a.address for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)):
            plain = known.partition("%")[0]
            if plain in wanted or (loops and ipaddress.ip_address(plain).is_loopback):
                return name
    raise ValueError(f"address {host}: expected one of this machine's network interfaces, got none with it")
