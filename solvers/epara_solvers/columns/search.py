"""The incumbent: a packing that is built under prices and then repacked, on as many threads as the edge has room for.

Threads work in regions: servers near a random one, and the others. Each region's servers keep what they serve; demand
and bandwidth that are left go to the region they lie in. So regions never take the same thing, whatever their threads
do when, and after each batch the regions are drawn anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from epara_solvers.columns import packing, pricing
from epara_solvers.columns.arrays import F64, I8, I32, I64, Ground
from epara_solvers.columns.dual import SERVERS_PER_THREAD, Listed, Priced, Prices
from epara_solvers.columns.packing import Packing
from epara_solvers.columns.routing import Router

from epara_opt.domain.parallel import ParallelConfig
from epara_opt.placement import Flow, PlacedGroup, Placement
from epara_opt.plan import Plan, Route

THETA = 0.9  # of the prices, for the first construction: measured best of 0, 0.5, 0.9 and 1 at 20, 100, 1,000 servers
HEAT = 0.05  # of a mean group's gain, at the start of annealing
REGION = 40  # servers routed together
LP_LIMIT_S = 10.0  # a region's program ends in hundredths of a second; this is for the one that does not


class Repacker:
    """One packing and its search. Not thread-safe; its threads are its own."""

    def __init__(self, ground: Ground, *, seed: int, threads: int = 1) -> None:
        a = ground.arrays
        self.ground = ground
        self.packing = packing.empty_packing(a, ground.problem.moves_allowed)
        self.best: Packing | None = None
        self.best_value = -1.0
        self.stop = np.zeros(1, dtype=np.int64)
        self._threads = max(1, min(threads, ground.num_servers // SERVERS_PER_THREAD))
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._rng = [np.array([seed * 1_000_003 + i], dtype=np.uint64) for i in range(self._threads)]
        self._draw = np.random.default_rng(seed)
        self._bench = [pricing.bench_for(a) for _ in range(self._threads)]
        widest = int(np.diff(a.server_pool).max(initial=1)) * int(a.pool_devices.max(initial=1))
        self._spare = [packing.spare_packing(widest * packing.MAX_RUINED) for _ in range(self._threads)]
        order = np.lexsort((ground.table.network_ms, a.edge_demand))
        self._demand_edge: I32 = order.astype(np.int32)
        self._demand_start: I64 = np.searchsorted(a.edge_demand[order], np.arange(len(a.offered) + 1)).astype(np.int64)
        self._whole = np.zeros(ground.num_servers, dtype=np.int8)
        num_paths = len(a.path_start) - 1
        self._cost_there, self._cost_back = np.zeros(num_paths), np.zeros(num_paths)
        self._pi = np.zeros(len(a.offered))
        self._listed = Listed(a.pool_column, a.every_column)
        self._packing_value = np.zeros(ground.num_servers)
        self._regret = np.zeros(ground.num_servers)
        self._router = Router(ground, self.packing.pool_slot)
        self._place = {name: i for i, name in enumerate(ground.table.servers)}
        self._routed = np.zeros(ground.num_servers, dtype=np.int64)  # how often

    @property
    def value(self) -> float:
        return float(self.packing.gain.sum())

    def under(self, prices: Prices, priced: Priced, columns: Listed) -> None:
        """Be guided by these prices from now on, and build of these columns."""
        self._listed = columns
        self._pi = prices.pi
        pricing.path_costs(self.ground.arrays, prices.beta, self._cost_there, self._cost_back)
        self._packing_value = priced.packing_value
        self._update_regret()

    def construct(self, *, theta: float = THETA) -> None:
        """Fill all free devices, servers in order."""
        order = np.arange(self.ground.num_servers)
        a, costs = self.ground.arrays, (self._pi, self._cost_there, self._cost_back)
        packing.construct(
            a,
            self._bench[0],
            self.packing,
            order,
            self._listed.start,
            self._listed.column,
            theta,
            0.0,
            self._rng[0],
            *costs,
        )
        self._update_regret()
        self._keep_best()

    def resume(self, in_force: Plan) -> None:
        """Put the groups in force back where they run, with the routes that still hold."""
        a, ground = self.ground.arrays, self.ground
        pool_at = {pool: q for q, pool in enumerate(ground.pools)}
        held: dict[str, dict[str, ParallelConfig]] = {}
        group_of: dict[str, str] = {}
        for r in in_force.replicas:
            held.setdefault(r.group, {})[r.service] = r.config
            group_of[r.id] = r.group
        routes: dict[str, list[Route]] = {}
        for route in (r for r in in_force.routes if r.replica in group_of):
            routes.setdefault(group_of[route.replica], []).append(route)
        grown = self._growth(in_force)
        for kind, members in enumerate(ground.classes):
            q = pool_at[members[0].server, members[0].device_type]
            first, last = a.pool_column[q], a.pool_column[q + 1]
            mine = first + np.flatnonzero(a.column_class[first:last] == kind)
            for member in members:
                k = self._likest(mine, held.get(member.group, {}))
                if k >= 0 and packing.has_room(a, self.packing, q, k):
                    asked = self._asked(k, member.server, routes.get(member.group, []), grown)
                    packing.put(a, self.packing, q, k, *asked)

    def _growth(self, in_force: Plan) -> dict[tuple[str, str], float]:
        """(service, origin) to what is asked for now over what was then."""
        then: dict[tuple[str, str], float] = {}
        for part in (*in_force.routes, *in_force.unserved):
            then[part.service, part.origin] = then.get((part.service, part.origin), 0.0) + part.rate
        now = self.ground.problem.offered
        return {key: now.get(key, 0.0) / rate for key, rate in then.items() if rate > 0.0}

    def _asked(
        self, k: int, server: str, routes: list[Route], grown: dict[tuple[str, str], float]
    ) -> tuple[I64, I64, F64]:
        """Edges, tenants and rates of a group's old routes, at the demand of now."""
        a, table = self.ground.arrays, self.ground.table
        tenants = {t.service: i for i, t in enumerate(self.ground.contents[int(a.column_content[k])].tenants)}
        found: list[tuple[int, int, float]] = []
        for route in routes:
            tenant = tenants.get(route.service)
            edge = table.find(route.service, route.origin, server) if tenant is not None else -1
            if tenant is not None and edge >= a.column_first[k, tenant]:
                found.append((edge, tenant, route.rate * grown.get((route.service, route.origin), 0.0)))
        edges, who, rates = zip(*found, strict=True) if found else ((), (), ())
        return np.array(edges, dtype=np.int64), np.array(who, dtype=np.int64), np.array(rates, dtype=np.float64)

    def _likest(self, columns: I64, held: dict[str, ParallelConfig]) -> int:
        """The column whose content differs least from what a group holds; -1 where there is none."""
        best, best_unlike = -1, 1 << 30
        for k in columns.tolist():
            tenants = self.ground.contents[int(self.ground.arrays.column_content[k])].tenants
            same = sum(held.get(t.service) == t.config for t in tenants)
            unlike = 2 * len(held.keys() ^ {t.service for t in tenants}) + len(tenants) - same
            if unlike < best_unlike:
                best, best_unlike = k, unlike
        return best

    def take(self, other: Repacker) -> None:
        """Go on where another stands."""
        self.packing, self.best, self.best_value = other.packing, other.best, other.best_value
        self._update_regret()

    def repack(self, rounds: int, *, heat: float) -> int:
        """So many rounds in all, fewer when `stop` is set; heat in [0, 1] of `HEAT`. Returns the rounds done."""
        groups = self.packing.gain[self.packing.column >= 0]
        warmth = heat * HEAT * float(groups.mean()) if len(groups) else 0.0
        if self._pool is None:
            done = self._repack(0, self.packing, rounds, self._whole, 0, warmth)
        else:
            region = self._halves()
            parts = self._parts(region)
            each = rounds // self._threads
            jobs = [self._pool.submit(self._repack, i, parts[i], each, region, i, warmth) for i in range(self._threads)]
            done = sum(job.result() for job in jobs)
            self._join(parts)
        self._keep_best()
        return done

    def _repack(self, i: int, part: Packing, rounds: int, region: I8, mine: int, warmth: float) -> int:
        done, _, _ = packing.repack(
            self.ground.arrays,
            self._bench[i],
            part,
            self._spare[i],
            rounds,
            region,
            mine,
            self._listed.start,
            self._listed.column,
            self._demand_start,
            self._demand_edge,
            self.ground.table.server,
            self._packing_value,
            self._regret,
            self._rng[i],
            self._pi,
            self._cost_there,
            self._cost_back,
            warmth,
            self.stop,
        )
        return done

    @property
    def regions(self) -> int:
        """Regions to route for each server to have been inside one, not only at its rim."""
        return max(1, -(-2 * self.ground.num_servers // REGION))

    def reroute(self, regions: int, *, left_s: Callable[[], float] = lambda: LP_LIMIT_S) -> float:
        """Best flows inside so many regions, those first that were routed longest ago. Returns what they earn more.

        left_s: seconds left now; at 0 no region is begun, and none takes longer.
        """
        if self._pool is None or regions < self._threads:
            gained = sum(self._reroute(self.packing, self._whole, 0, left_s) for _ in range(regions))
        else:
            region = self._halves()
            parts = self._parts(region)
            each = regions // self._threads
            jobs = [
                self._pool.submit(lambda i=i: sum(self._reroute(parts[i], region, i, left_s) for _ in range(each)))
                for i in range(self._threads)
            ]
            gained = sum(job.result() for job in jobs)
            self._join(parts)
        self._keep_best()
        return gained

    def _reroute(self, part: Packing, region: I8, mine: int, left_s: Callable[[], float]) -> float:
        """One region of servers near the one of ours that was routed longest ago."""
        limit_s = min(LP_LIMIT_S, left_s())
        if limit_s <= 0.0:
            return 0.0
        ours = np.flatnonzero(region == mine)
        pivot = int(ours[np.argmin(self._routed[ours])])
        near = [n for n in self._nearest(pivot, 2 * REGION) if region[n] == mine][:REGION]
        self._routed[near[: -(-len(near) // 2)]] += 1
        return self._router.improve(part, np.array(near, dtype=np.int64), time_limit_s=limit_s)

    def _nearest(self, pivot: int, most: int) -> list[int]:
        """Servers by round trip from one, itself first."""
        problem = self.ground.problem
        near = problem.topology.around(self.ground.table.servers[pivot], without=problem.down).nearest()
        return list(itertools.islice((self._place[s.server] for s in near if s.server in self._place), most))

    def _halves(self) -> I8:
        """Servers by distance from a random one, cut into as many parts as there are threads."""
        num = self.ground.num_servers
        region = np.full(num, self._threads - 1, dtype=np.int8)
        size = -(-num // self._threads)
        near = self._nearest(int(self._draw.integers(num)), num)
        region[near] = np.arange(len(near)) // size
        return region

    def _join(self, parts: list[Packing]) -> None:
        """What parts have left is left of the whole."""
        np.sum([p.demand_left for p in parts], axis=0, out=self.packing.demand_left)
        np.sum([p.link_left for p in parts], axis=0, out=self.packing.link_left)
        np.sum([p.moves_left for p in parts], axis=0, out=self.packing.moves_left)

    def _parts(self, region: I8) -> list[Packing]:
        """The packing as each region sees it: the same slots, and its own share of what is left."""
        table, place = self.ground.table, self._place
        home = region[table.server[self._demand_edge[self._demand_start[:-1]]]] if len(table) else np.zeros(0)
        ends = np.array([[place.get(end, -1) for end in pair] for pair in table.link_ends]).reshape(-1, 2)
        ends = np.where(ends < 0, ends[:, ::-1], ends)  # an end without devices counts with the other
        parts: list[Packing] = []
        for i in range(self._threads):
            share = np.where(ends < 0, 1.0 / self._threads, region[ends] == i).mean(axis=1)
            share = np.where((ends < 0).all(axis=1), 1.0 / self._threads, share)
            parts.append(
                self.packing._replace(
                    demand_left=np.where(home == i, self.packing.demand_left, 0.0),
                    link_left=self.packing.link_left * share,
                    moves_left=(self.packing.moves_left + i) // self._threads,
                )
            )
        return parts

    def _update_regret(self) -> None:
        packing.regrets(
            self.ground.arrays,
            self.packing,
            self._packing_value,
            self._pi,
            self._cost_there,
            self._cost_back,
            self._regret,
        )

    def _keep_best(self) -> None:
        value = self.value
        if value > self.best_value:
            self.best, self.best_value = packing.copy_packing(self.packing), value

    def placement(self) -> Placement:
        """The best packing found."""
        return placement_of(self.ground, self.best if self.best is not None else self.packing)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def placement_of(ground: Ground, packed: Packing) -> Placement:
    """Groups and flows as the rest of the program knows them; members of a class of residents are kept in order."""
    a = ground.arrays
    groups: list[PlacedGroup] = []
    flows: list[Flow] = []
    taken = [0] * len(ground.classes)
    slots = np.flatnonzero(packed.column >= 0)
    pool_of = np.searchsorted(packed.pool_slot, slots, side="right") - 1
    for x, q in zip(slots.tolist(), pool_of.tolist(), strict=True):
        k = int(packed.column[x])
        kind = int(a.column_class[k])
        resident = None
        if kind >= 0:
            resident = ground.classes[kind][taken[kind]]
            taken[kind] += 1
        num = int(packed.num_flows[x])
        edges = ground.table.some(packed.flow_edge[x, :num].tolist())
        rates = packed.flow_rate[x, :num].tolist()
        flows.extend(Flow(edge=e, group=len(groups), rate=r) for e, r in zip(edges, rates, strict=True))
        content = ground.contents[int(a.column_content[k])]
        groups.append(PlacedGroup(server=ground.pools[q][0], content=content, resident=resident))
    return Placement(groups=tuple(groups), flows=tuple(flows))
