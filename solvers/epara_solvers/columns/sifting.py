"""Which contents are worth a column at which pool: reach, batches that fill, and dominance, in compiled code."""

# pyright: basic
# Kernels have no annotations: numba infers the types of what it is given, the arrays of columns.arrays.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numba import njit


@dataclass(frozen=True, slots=True)
class Sifted:
    """Columns of all pools in a row. K columns, Q pools, T tenants at most."""

    pool_column: npt.NDArray[np.int64]  # (Q + 1,)
    content: npt.NDArray[np.int32]  # (K,)
    resident_class: npt.NDArray[np.int32]  # (K,)
    loaded: npt.NDArray[np.int8]  # (K,)
    max_groups: npt.NDArray[np.int32]  # (K,)
    first: npt.NDArray[np.int32]  # (K, T)


def sift(**arrays: npt.NDArray[Any]) -> Sifted:
    """See `columns.arrays.ground_of`, which names the arguments."""
    return Sifted(*cast("tuple[Any, ...]", _sift(**arrays)))


@njit(cache=True, nogil=True)
def _grown(rows, size):
    bigger = np.empty((size,) + rows.shape[1:], dtype=rows.dtype)  # noqa: RUF005 - numba knows no unpacking
    bigger[: len(rows)] = rows
    return bigger


@njit(cache=True, nogil=True)
def _fits_in_place(services, memory, held_services, held_memory, several, room):
    """epara_opt.beside.fits_in_place, of one content (T,) and one class of residents. several: devices."""
    anew = False
    for service in services:
        anew = anew or (several and service >= 0 and not held_services[service])
    together = held_memory.sum()
    for t in range(len(services)):
        if services[t] >= 0:
            together += memory[t] if anew else max(0.0, memory[t] - held_memory[services[t]])
    return together <= room


@njit(cache=True, nogil=True)
def _dominate(marks, allowed, work, out):
    """Writes for each row (R,) whether another that is allowed is at least it in all marks; of equals the faster stays,
    then the first."""
    for i in range(len(marks)):
        out[i] = False
        for j in range(len(marks) if allowed[i] else 0):
            if j == i or not allowed[j]:
                continue
            at_least = True
            same = True
            for m in range(marks.shape[1]):
                if marks[j, m] < marks[i, m]:
                    at_least = False
                    break
                if marks[j, m] > marks[i, m]:
                    same = False
            if at_least and same:
                at_least = j < i
                for t in range(work.shape[1]):
                    if work[j, t] != work[i, t]:
                        at_least = work[j, t] > work[i, t]
                        break
            if at_least:
                out[i] = True
                break


@njit(cache=True, nogil=True)
def _sift(
    pool_server,
    pool_devices,
    pool_type,
    type_start,
    content_group,
    content_devices,
    content_service,
    content_response,
    content_work,
    content_load,
    content_streams,
    content_spared,
    content_tp,
    content_pp,
    content_memory,
    content_needs,
    level_start,
    level_free,
    pool_memory,
    seg_at,
    seg_start,
    edge_slack,
    edge_offered,
    class_start,
    class_shape,
    class_size,
    class_services,
    class_memory,
):
    num_pools, width = len(pool_server), content_service.shape[1]
    tail = np.zeros(len(edge_slack))  # demand from an edge to the end of its segment
    for seg in range(len(seg_start) - 1):
        total = 0.0
        for e in range(seg_start[seg + 1] - 1, seg_start[seg] - 1, -1):
            total += edge_offered[e]
            tail[e] = total
    size = 4096
    out_content = np.empty(size, dtype=np.int32)
    out_class = np.empty(size, dtype=np.int32)
    out_loaded = np.empty(size, dtype=np.int8)
    out_max = np.empty(size, dtype=np.int32)
    out_first = np.empty((size, width), dtype=np.int32)
    pool_column = np.zeros(num_pools + 1, dtype=np.int64)
    num = 0
    first = np.zeros(width, dtype=np.int32)
    for q in range(num_pools):
        n = pool_server[q]
        c = type_start[pool_type[q]]
        end = type_start[pool_type[q] + 1]
        levels = level_free[level_start[q] : level_start[q + 1]]
        while c < end:
            stop = c
            while stop < end and content_group[stop] == content_group[c]:
                stop += 1
            # contents c..stop differ only in configurations
            marks = np.zeros((stop - c, 3 * width + 1))  # the last: how low a level of the pool is enough
            firsts = np.empty((stop - c, width), dtype=np.int32)
            fills = np.empty(stop - c)
            good = np.zeros(stop - c, dtype=np.bool_)
            allowed = np.zeros(stop - c, dtype=np.bool_)
            dominated = np.zeros(stop - c, dtype=np.bool_)
            num_tenants = 0
            for t in range(width):
                num_tenants += content_service[c, t] >= 0
            for i in range(c, stop):
                if content_devices[i] > pool_devices[q]:
                    continue
                ok = True
                fill = 0.0
                for t in range(width):
                    first[t] = 0
                    marks[i - c, 3 * t : 3 * t + 3] = 0.0
                    service = content_service[i, t]
                    if service < 0:
                        continue
                    seg = seg_at[n, service]
                    if seg < 0:
                        ok = False
                        break
                    lo, hi = seg_start[seg], seg_start[seg + 1]
                    at = lo + np.searchsorted(edge_slack[lo:hi], content_response[i, t])
                    if at >= hi:
                        ok = False
                        break
                    demand = tail[at]
                    if content_streams[i, t] > np.ceil(demand):
                        ok = False
                        break
                    first[t] = at
                    fill += demand / content_work[i, t]
                    marks[i - c, 3 * t] = hi - at
                    marks[i - c, 3 * t + 1] = (
                        min(content_work[i, t], demand) if num_tenants == 1 else content_work[i, t]
                    )
                    marks[i - c, 3 * t + 2] = -content_load[i, t]
                if ok:
                    good[i - c] = True
                    firsts[i - c] = first
                    fills[i - c] = fill
            for k in range(class_start[q] - 1, class_start[q + 1]):
                is_new = k < class_start[q]
                if is_new:
                    allowed[:] = good
                    for i in range(c, stop):
                        marks[i - c, 3 * width] = -np.searchsorted(levels, content_needs[i])
                elif len(levels) > 0:
                    marks[:, 3 * width] = 0.0
                    for i in range(c, stop):
                        allowed[i - c] = good[i - c] and _fits_in_place(
                            content_service[i],
                            content_memory[i],
                            class_services[k],
                            class_memory[k],
                            content_devices[i] > 1,
                            pool_memory[q],
                        )
                if is_new or len(levels) > 0:  # else what is best does not depend on what runs
                    _dominate(marks, allowed, content_work[c:stop], dominated)
                for i in range(c, stop):
                    if not allowed[i - c] or dominated[i - c]:
                        continue
                    most = min(pool_devices[q] // content_devices[i], np.int64(np.ceil(fills[i - c])))
                    if most < 1:
                        continue
                    loaded = 0
                    if not is_new:
                        if class_shape[k, 0] != content_tp[i] or class_shape[k, 1] != content_pp[i]:
                            continue
                        for t in range(width):
                            service = content_service[i, t]
                            if service >= 0 and class_services[k, service] and content_spared[i, t]:
                                loaded |= 1 << t
                        if loaded == 0:
                            continue
                        most = min(most, class_size[k])
                    if num == size:
                        size *= 2
                        out_content = _grown(out_content, size)
                        out_class = _grown(out_class, size)
                        out_loaded = _grown(out_loaded, size)
                        out_max = _grown(out_max, size)
                        out_first = _grown(out_first, size)
                    out_content[num] = i
                    out_class[num] = -1 if is_new else k
                    out_loaded[num] = loaded
                    out_max[num] = most
                    out_first[num] = firsts[i - c]
                    num += 1
            c = stop
        pool_column[q + 1] = num
    return (
        pool_column,
        out_content[:num].copy(),
        out_class[:num].copy(),
        out_loaded[:num].copy(),
        out_max[:num].copy(),
        out_first[:num].copy(),
    )
