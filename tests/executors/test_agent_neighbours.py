"""State synchronization among many: real agents' peer planes over gRPC, all in one process."""

import asyncio
from collections import Counter

import grpc.aio
from epara_executors.agent.control_plane import PeerPlane
from epara_executors.agent.echo_launcher import EchoLauncher
from epara_executors.agent.executor import Executor
from epara_executors.agent.peers import Peers
from epara_executors.agent.persistence import CommittedStore
from epara_executors.agent.routing_table import build
from epara_executors.rpc.epara_pb2_grpc import add_ExecutorPeerServicer_to_server

from epara_opt.control.ports import CommitSpec, PeerSpec
from epara_opt.policy.offload import FAN_OUT


class CountingPlane(PeerPlane):
    """The peer plane, which also notes who has asked."""

    def __init__(self, executor, peers, asked):
        super().__init__(executor, peers)
        self._asked = asked

    async def Sync(self, request, context):  # noqa: N802
        self._asked.append(request.server)
        return await super().Sync(request, context)


async def neighbourhood(folder, num):
    names = [f"n{i}" for i in range(num)]
    asked = []
    executors, peers, servers, addresses, stores = {}, {}, [], {}, []
    for name in names:
        stores.append(CommittedStore(folder / name))
        executors[name] = Executor(name, launcher=EchoLauncher(), store=stores[-1], socket_dir=folder, max_devices={})
        peers[name] = Peers(executors[name])
        server = grpc.aio.server()
        add_ExecutorPeerServicer_to_server(CountingPlane(executors[name], peers[name], asked), server)
        addresses[name] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
    for name in names:
        others = tuple(
            PeerSpec(service="s", server=o, address=addresses[o], network_ms=1.0, capacity_per_s=1.0)
            for o in names
            if o != name
        )
        executors[name].routing = build(CommitSpec(server=name, groups=(), routes=(), peers=others), {})
    return names, peers, servers, stores, asked


def test_thirty_neighbours_all_learn_of_each_other_by_eight_questions_a_turn(tmp_path):
    async def main():
        names, peers, servers, stores, asked = await neighbourhood(tmp_path, 31)

        def num_unheard():
            return sum(peers[a].get(b).synced_at < 0 for a in names for b in names if a != b)

        try:
            for p in peers.values():
                p.refresh()
            for _ in range(50):  # four turns do (test_policy_offload), unless this machine lets questions time out
                asked.clear()
                await asyncio.gather(*(p.turn() for p in peers.values()))
                assert max(Counter(asked).values(), default=0) <= FAN_OUT  # none where this machine let all time out
                if not num_unheard():
                    break
            assert num_unheard() == 0
        finally:
            for p in peers.values():
                await p.close()
            await asyncio.gather(*(s.stop(None) for s in servers))
            for store in stores:
                store.close()

    asyncio.run(main())
