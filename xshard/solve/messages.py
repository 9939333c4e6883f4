# pyright: standard
r"""Dual bounds of a `Net`: messages along the edges of the whole graph, compiled.

With a message $\varphi_{e,i}$ for each edge $e$ and each of its ends $i$ the costs
$\theta'_i = \theta_i - \sum_e \varphi_{e,i}$ and $\theta'_e(a, b) = \theta_e(a, b) +
\varphi_{e,i}(a) + \varphi_{e,j}(b)$ add up to the same for all choices, so that

$$L(\varphi) = \sum_i \min \theta'_i + \sum_e \min \theta'_e$$

is a lower bound. A step (`_pass`) gives a node all that its edges can spare and hands it on to the
edges that lead further in the order of the nodes; passes go forward and backward in turn, and none
lowers $L$ (Kolmogorov, IEEE PAMI 37(5), 2015: SRMP, for pairs the same as TRW-S).
"""

from __future__ import annotations

import numpy as np

from xshard.solve.flat import offsets_of
from xshard.solve.jit import kernel
from xshard.solve.net import Net
from xshard.solve.problem import Ints


def message_starts(net: Net) -> Ints:
    """Where the message to the owner of each entry of `net.near` begins; the last is their size."""
    return offsets_of(np.repeat(np.diff(net.offsets), np.diff(net.first)))


@kernel
def _spare(net, at, messages, j, k, least):
    """What edge j of a node can spare for each of the node's k choices."""
    u = net.near[j]
    row, other = net.at[j], at[net.back[j]]
    for c in range(k):
        least[c] = np.inf
    for d in range(net.offsets[u + 1] - net.offsets[u]):
        m = messages[other + d]
        for c in range(k):
            least[c] = min(least[c], net.tables[row + c] + m)
        row += k


@kernel
def _pass(net, theta, rank, at, messages, order, forward):
    widest = 0
    for v in range(len(order)):
        widest = max(widest, net.offsets[v + 1] - net.offsets[v])
    total, least = np.empty(widest), np.empty(widest)
    for i in range(len(order)):
        v = order[i] if forward else order[len(order) - 1 - i]
        o = net.offsets[v]
        k = net.offsets[v + 1] - o
        on, back = 0, 0
        for c in range(k):
            total[c] = theta[o + c]
        for j in range(net.first[v], net.first[v + 1]):
            if (rank[net.near[j]] > rank[v]) == forward:
                on += 1
            else:
                back += 1
            _spare(net, at, messages, j, k, least)
            for c in range(k):
                total[c] += least[c]
                messages[at[j] + c] = -least[c]
        if on > 0:
            share = 1.0 / max(on, back)
            for j in range(net.first[v], net.first[v + 1]):
                if (rank[net.near[j]] > rank[v]) == forward:
                    for c in range(k):
                        messages[at[j] + c] += share * total[c]


@kernel
def sweep(net, theta, rank, at, messages, order, sweeps):
    """`sweeps` passes forward and backward; `order` holds the nodes, `rank` their places in it."""
    for _ in range(sweeps):
        _pass(net, theta, rank, at, messages, order, True)
        _pass(net, theta, rank, at, messages, order, False)


@kernel
def marginals(net, theta, at, messages, extra):
    """The bound; `extra` becomes by how much each choice raises it."""
    bound = 0.0
    widest = 0
    for v in range(len(net.offsets) - 1):
        widest = max(widest, net.offsets[v + 1] - net.offsets[v])
    least = np.empty(widest)
    for v in range(len(net.offsets) - 1):
        o = net.offsets[v]
        k = net.offsets[v + 1] - o
        for c in range(k):
            extra[o + c] = theta[o + c]
        for j in range(net.first[v], net.first[v + 1]):
            for c in range(k):
                extra[o + c] -= messages[at[j] + c]
        low = np.inf
        for c in range(k):
            low = min(low, extra[o + c])
        bound += low
        for c in range(k):
            extra[o + c] -= low
        for j in range(net.first[v], net.first[v + 1]):
            _spare(net, at, messages, j, k, least)
            low = np.inf
            for c in range(k):
                least[c] += messages[at[j] + c]
                low = min(low, least[c])
            if net.near[j] > v:
                bound += low
            for c in range(k):
                extra[o + c] += least[c] - low
    return bound


@kernel
def decode(net, theta, at, messages, order, rank, choices):
    """Each node's best choice given those before it in `order`, the rest by messages."""
    widest = 0
    for v in range(len(order)):
        widest = max(widest, net.offsets[v + 1] - net.offsets[v])
    total, least = np.empty(widest), np.empty(widest)
    for i in range(len(order)):
        v = order[i]
        o = net.offsets[v]
        k = net.offsets[v + 1] - o
        for c in range(k):
            total[c] = theta[o + c]
        for j in range(net.first[v], net.first[v + 1]):
            u = net.near[j]
            if rank[u] < rank[v]:
                row = net.at[j] + choices[u] * k
                for c in range(k):
                    total[c] += net.tables[row + c]
            else:
                _spare(net, at, messages, j, k, least)
                for c in range(k):
                    total[c] += least[c]
        arg = 0
        for c in range(k):
            if total[c] < total[arg]:
                arg = c
        choices[v] = arg


@kernel
def polish(net, theta, order, choices, passes):
    """Takes better choices node by node, the others as they are, until none is better."""
    widest = 0
    for v in range(len(order)):
        widest = max(widest, net.offsets[v + 1] - net.offsets[v])
    total = np.empty(widest)
    for _ in range(passes):
        changed = False
        for i in range(len(order)):
            v = order[i]
            o = net.offsets[v]
            k = net.offsets[v + 1] - o
            for c in range(k):
                total[c] = theta[o + c]
            for j in range(net.first[v], net.first[v + 1]):
                row = net.at[j] + choices[net.near[j]] * k
                for c in range(k):
                    total[c] += net.tables[row + c]
            arg = choices[v]
            for c in range(k):
                if total[c] < total[arg]:
                    arg = c
            changed = changed or arg != choices[v]
            choices[v] = arg
        if not changed:
            break


@kernel
def spare(net, at, messages, out):
    """What each edge can spare for each choice of its owner: the messages of min-sum."""
    widest = 0
    for v in range(len(net.offsets) - 1):
        widest = max(widest, net.offsets[v + 1] - net.offsets[v])
    least = np.empty(widest)
    for v in range(len(net.offsets) - 1):
        k = net.offsets[v + 1] - net.offsets[v]
        for j in range(net.first[v], net.first[v + 1]):
            _spare(net, at, messages, j, k, least)
            for c in range(k):
                out[at[j] + c] = least[c]
