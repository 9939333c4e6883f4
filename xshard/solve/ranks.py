"""Orders in which a sparse graph of nodes falls apart with small tables."""

from __future__ import annotations

import heapq

import numpy as np

from xshard.solve.flat import Flat
from xshard.solve.problem import Ints

MOST_NEIGHBOURS = 24
"""Nodes that have more when their turn comes stay for the end, in no order."""


def ranks(flat: Flat, seeds: int) -> Ints:
    """`seeds` elimination orders, shape (seeds, nodes): the rank of each node, first ones first.

    Always the node with the smallest table (its choices times its neighbours') is next; `seeds`
    differ in how ties and near-ties are broken.
    """
    return np.stack([_rank(flat, np.random.default_rng(seed)) for seed in range(seeds)])


def _rank(flat: Flat, random: np.random.Generator) -> Ints:
    size = np.log2(np.maximum(flat.sizes, 1)) * random.uniform(0.8, 1.25, len(flat.sizes))
    around: list[set[int]] = [set() for _ in flat.sizes]
    ends: list[list[int]] = flat.ends.tolist()
    for a, b in ends:
        around[a].add(b)
        around[b].add(a)
    cost = [float(size[i]) + sum(float(size[j]) for j in around[i]) for i in range(len(size))]
    heap = [(c, i) for i, c in enumerate(cost) if len(around[i]) <= MOST_NEIGHBOURS]
    heapq.heapify(heap)
    rank = len(size) + random.permutation(len(size))
    turn = 0
    while heap:
        c, i = heapq.heappop(heap)
        if rank[i] < len(size) or c != cost[i] or len(around[i]) > MOST_NEIGHBOURS:
            continue
        rank[i] = turn
        turn += 1
        for j in around[i]:
            around[j] |= around[i]
            around[j] -= {i, j}
            cost[j] = float(size[j]) + sum(float(size[u]) for u in around[j])
            if len(around[j]) <= MOST_NEIGHBOURS:
                heapq.heappush(heap, (cost[j], j))
    return rank.astype(np.int64)
