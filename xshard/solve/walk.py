# pyright: standard
r"""A random walk over answers that fit, a block of nodes at a time.

One step (`walk`) gathers a random block of nodes $B$ and takes those choices of the whole block
that minimise

$$\sum_{i \in B} \big(\mathrm{cost}_i + \mathrm{price}_i - T g_i\big)[c_i]
  + \sum_{\mathrm{edges}} \mathrm{cost}_{ij}[c_i, c_j],$$

with everything else as it is, by dynamic programming: in the reverse of the order in which they
joined, nodes are minimised out over the ones before them (`_minimise`). A node joins a block only
where no table of that becomes too large (`_join`), so that blocks may be much wider than trees.

$g$ is Gumbel noise, so that at temperature $T$ a step draws from (nearly) the Gibbs distribution of
the block, and at $T = 0$ it is the best. $\mathrm{price}_i[c]$ is what the memory of a choice costs
at the present prices of its moments (`xshard.solve.net.priced`). A step whose memory does not fit
is tried again at a higher price, then given up: no answer on the way exceeds the limit.

All kernels that `walk` calls are in this file: what is kept of a compiled kernel is only renewed
when its own file changes.
"""

from __future__ import annotations

import numpy as np

from xshard.solve.jit import kernel
from xshard.solve.net import MOST_PARENTS

WIDE = 24
"""A node with more neighbours than this joins a block with a probability that falls with them."""
TRIES = 10


@kernel
def _next(random):
    bits = random[0]
    bits ^= bits << np.uint64(13)
    bits ^= bits >> np.uint64(7)
    bits ^= bits << np.uint64(17)
    random[0] = bits
    return np.int64(bits >> np.uint64(2))


@kernel
def _width(net, v, most):
    """How many choices of node v a block looks at."""
    return min(net.offsets[v + 1] - net.offsets[v], most)


@kernel
def _join(net, desk, v, size, near, entries, most):
    """Whether node v, next to the positions `near` of the block, keeps all tables small."""
    cells = _width(net, v, most)
    m = len(near)
    if m > MOST_PARENTS:
        return False
    for i in range(m):
        cells *= _width(net, desk.block[near[i]], most)
    if cells > entries:
        return False
    desk.counts[size] = m
    for i in range(m):
        desk.parents[size, i] = near[i]
    waiting = 0
    scope = near
    while len(scope) > 1:
        u = scope[-1]
        old = desk.parents[u, : desk.counts[u]]
        merged = np.empty(len(old) + len(scope), np.int64)
        i, j, count = 0, 0, 0
        while i < len(old) or j < len(scope) - 1:
            if j >= len(scope) - 1 or (i < len(old) and old[i] <= scope[j]):
                x = old[i]
                if j < len(scope) - 1 and scope[j] == x:
                    j += 1
                i += 1
            else:
                x = scope[j]
                j += 1
            merged[count] = x
            count += 1
        if count == len(old):
            break
        if count > MOST_PARENTS:
            return False
        cells = _width(net, desk.block[u], most)
        for i in range(count):
            cells *= _width(net, desk.block[merged[i]], most)
        if cells > entries:
            return False
        desk.waiting[waiting] = u
        desk.waiting_counts[waiting] = count
        for i in range(count):
            desk.waiting_parents[waiting, i] = merged[i]
        waiting += 1
        scope = merged[:count]
    for i in range(waiting):
        u = desk.waiting[i]
        desk.counts[u] = desk.waiting_counts[i]
        for j in range(desk.counts[u]):
            desk.parents[u, j] = desk.waiting_parents[i, j]
    return True


@kernel
def _place(net, desk, w, size, step, entries, most):
    """Adds node w to the block of `size`, if that keeps all tables small; the new size."""
    near = np.empty(MOST_PARENTS + 1, np.int64)
    m = 0
    for j in range(net.first[w], net.first[w + 1]):
        u = net.near[j]
        if desk.stamp[u] == step:
            p = desk.where[u]
            i = m
            while i > 0 and near[i - 1] > p:
                near[i] = near[i - 1]
                i -= 1
            near[i] = p
            m += 1
            if m > MOST_PARENTS:
                return size
    if not _join(net, desk, w, size, near[:m].copy(), entries, most):
        return size
    desk.block[size] = w
    desk.where[w] = size
    desk.stamp[w] = step
    return size + 1


@kernel
def _grow(net, desk, random, step, wanted, entries, most):
    """Fills the block with connected nodes around a random one; returns how many."""
    desk.frontier[0] = net.free[_next(random) % len(net.free)]
    desk.tried[desk.frontier[0]] = step
    size, count = 0, 1
    while size < wanted and count > 0:
        k = _next(random) % count
        w = desk.frontier[k]
        count -= 1
        desk.frontier[k] = desk.frontier[count]
        degree = net.first[w + 1] - net.first[w]
        if degree > WIDE and size > 0 and _next(random) % degree >= WIDE:
            continue
        before = size
        size = _place(net, desk, w, size, step, entries, most)
        if size > before:
            for j in range(net.first[w], net.first[w + 1]):
                u = net.near[j]
                if desk.tried[u] != step:
                    desk.tried[u] = step
                    desk.frontier[count] = u
                    count += 1
    return size


@kernel
def _region(net, desk, random, step, wanted, entries, most, rank):
    """Fills the block from a connected region, in an order that keeps tables small."""
    desk.frontier[0] = net.free[_next(random) % len(net.free)]
    desk.tried[desk.frontier[0]] = step
    done, count = 0, 1
    while done < wanted and done < count:
        k = done + _next(random) % (count - done)
        w = desk.frontier[k]
        desk.frontier[k] = desk.frontier[done]
        desk.frontier[done] = w
        done += 1
        for j in range(net.first[w], net.first[w + 1]):
            u = net.near[j]
            if desk.tried[u] != step:
                desk.tried[u] = step
                desk.frontier[count] = u
                count += 1
    keys = np.empty(done, np.int64)
    for i in range(done):
        keys[i] = -rank[desk.frontier[i]]
    order = np.argsort(keys)
    left_out = _next(random) % 24
    size = 0
    for i in range(done):
        if _next(random) % 128 >= left_out:
            size = _place(net, desk, desk.frontier[order[i]], size, step, entries, most)
    return size


@kernel
def _gather(net, desk, choices, step, size):
    """What each choice of the block costs with everything outside as it is."""
    for b in range(size):
        v = desk.block[b]
        o = net.offsets[v]
        k = net.offsets[v + 1] - o
        for c in range(k):
            desk.own[b, c] = net.costs[o + c]
        for j in range(net.first[v], net.first[v + 1]):
            w = net.near[j]
            if desk.stamp[w] != step:
                row = net.at[j] + choices[w] * k
                for c in range(k):
                    desk.own[b, c] += net.tables[row + c]


@kernel
def _add(joint, k, dims, strides, table, start):
    """Adds a table to joint[…, k], whose axes but the last have these sizes in `dims`."""
    m = len(dims)
    at = np.zeros(m, np.int64)
    row, o = start, 0
    total = 1
    for i in range(m):
        total *= dims[i]
    for _ in range(total):
        for c in range(k):
            joint[o + c] += table[row + c]
        o += k
        i = m - 1
        while i >= 0:
            at[i] += 1
            row += strides[i]
            if at[i] < dims[i]:
                break
            row -= strides[i] * dims[i]
            at[i] = 0
            i -= 1


@kernel
def _send(net, desk, step, size, b, forward):
    """Messages of one node of the block to those that come later (or earlier) in it: TRW-S."""
    v = desk.block[b]
    k = net.offsets[v + 1] - net.offsets[v]
    total = desk.total
    for c in range(k):
        total[c] = desk.work[b, c]
    before, after = 0, 0
    for j in range(net.first[v], net.first[v + 1]):
        u = net.near[j]
        if desk.stamp[u] == step:
            if desk.where[u] < b:
                before += 1
            else:
                after += 1
            at = desk.inbox_at[j]
            for c in range(k):
                total[c] += desk.inbox[at + c]
    share = 1.0 / max(before, after, 1)
    mine = desk.score[b]
    for c in range(k):
        mine[c] = total[c]
    sums = k * (before + after)
    for j in range(net.first[v], net.first[v + 1]):
        u = net.near[j]
        if desk.stamp[u] == step and (desk.where[u] > b) == forward:
            at, to, row = desk.inbox_at[j], desk.inbox_at[net.back[j]], net.at[j]
            for c in range(k):
                total[c] = share * mine[c] - desk.inbox[at + c]
            others = net.offsets[u + 1] - net.offsets[u]
            least = np.inf
            for d in range(others):
                low = np.inf
                for c in range(k):
                    low = min(low, total[c] + net.tables[row + c])
                desk.inbox[to + d] = low
                least = min(least, low)
                row += k
            for d in range(others):
                desk.inbox[to + d] -= least
            sums += others * k
    return sums


@kernel
def _candidates(net, desk, choices, step, size, most):
    """The choices of the block's nodes that are looked at: the present one first, and the best."""
    narrow = True
    for b in range(size):
        v = desk.block[b]
        narrow = narrow and net.offsets[v + 1] - net.offsets[v] <= most
    sums = 0
    if not narrow:
        for b in range(size):
            v = desk.block[b]
            for j in range(net.first[v], net.first[v + 1]):
                at = desk.inbox_at[j]
                for c in range(net.offsets[v + 1] - net.offsets[v]):
                    desk.inbox[at + c] = desk.opening[at + c]
        for b in range(size):
            sums += _send(net, desk, step, size, b, True)
        for b in range(size - 1, -1, -1):
            sums += _send(net, desk, step, size, b, False)
    for b in range(size):
        v = desk.block[b]
        k = net.offsets[v + 1] - net.offsets[v]
        desk.picks[b, 0] = choices[v]
        count = 1
        if k <= most:
            for c in range(k):
                if c != choices[v]:
                    desk.picks[b, count] = c
                    count += 1
        else:
            order = np.argsort(desk.score[b, :k])
            for c in order:
                if c != choices[v] and count < most:
                    desk.picks[b, count] = c
                    count += 1
        desk.widths[b] = count
    return sums


@kernel
def _few(net, desk, b, p, row, k):
    """The table between block positions p and b over their candidates."""
    few = desk.few
    n = desk.widths[b]
    for i in range(desk.widths[p]):
        at = row + desk.picks[p, i] * k
        for c in range(n):
            few[i * n + c] = net.tables[at + desk.picks[b, c]]


@kernel
def _eliminate(net, desk, step, b, used):
    """Minimises position b out over its parents; how many sums it took, or -1 without room."""
    v = desk.block[b]
    k, n = net.offsets[v + 1] - net.offsets[v], desk.widths[b]
    m = desk.counts[b]
    parents = desk.parents[b, :m]
    dims = np.empty(m, np.int64)
    strides = np.zeros(m, np.int64)
    cells = 1
    for i in range(m):
        dims[i] = desk.widths[parents[i]]
        cells *= dims[i]
    if used + cells > len(desk.low):
        return -1
    for i in range(cells):
        for c in range(n):
            desk.joint[i * n + c] = desk.work[b, desk.picks[b, c]]
    sums = cells * n
    for j in range(net.first[v], net.first[v + 1]):
        u = net.near[j]
        if desk.stamp[u] == step and desk.where[u] < b:
            p = desk.where[u]
            for i in range(m):
                strides[i] = n if parents[i] == p else 0
            _few(net, desk, b, p, net.at[j], k)
            _add(desk.joint, n, dims, strides, desk.few, 0)
            sums += cells * n
    c = desk.child[b]
    while c >= 0:
        stride = 1
        for i in range(m):
            strides[i] = 0
        for i in range(desk.counts[c] - 1, -1, -1):
            p = desk.parents[c, i]
            for j in range(m):
                if parents[j] == p:
                    strides[j] = stride
            stride *= desk.widths[p]
        _add(desk.joint, n, dims, strides, desk.low, desk.starts[c])
        sums += cells * n
        c = desk.sibling[c]
    for i in range(cells):
        low, arg = desk.joint[i * n], 0
        for c in range(1, n):
            if desk.joint[i * n + c] < low:
                low, arg = desk.joint[i * n + c], c
        desk.low[used + i] = low
        desk.pick[used + i] = arg
    desk.cells[b] = cells
    return sums


@kernel
def _minimise(net, desk, choices, step, size, most):
    """The block's best choices under `work`, into `new`; how many sums it took, or -1."""
    for b in range(size):
        desk.child[b] = -1
    sums = _candidates(net, desk, choices, step, size, most)
    used = 0
    for b in range(size - 1, -1, -1):
        made = _eliminate(net, desk, step, b, used)
        if made < 0:
            return -1
        sums += made
        desk.starts[b] = used
        used += desk.cells[b]
        m = desk.counts[b]
        if m > 0:
            p = desk.parents[b, m - 1]
            desk.sibling[b] = desk.child[p]
            desk.child[p] = b
    for b in range(size):
        at = 0
        for i in range(desk.counts[b]):
            p = desk.parents[b, i]
            at = at * desk.widths[p] + desk.at[p]
        desk.at[b] = desk.pick[desk.starts[b] + at]
        desk.new[b] = desk.picks[b, desk.at[b]]
    return sums


@kernel
def _move(net, desk, choices, over, step, size, limited):
    """Takes the new choices of the block if they fit; else marks the overfull moments."""
    delta = desk.delta
    low, high = len(over), 0
    for b in range(size):
        v = desk.block[b]
        if desk.new[b] != choices[v]:
            for j in range(net.span_first[v], net.span_first[v + 1]):
                s = net.spans[j]
                at = net.span_starts[s]
                amount = net.usage[at + desk.new[b]] - net.usage[at + choices[v]]
                if amount != 0:
                    delta[net.span_from[s]] += amount
                    delta[net.span_to[s]] -= amount
                    low = min(low, net.span_from[s])
                    high = max(high, net.span_to[s])
    fits, rise = True, 0
    for t in range(low, high):
        rise += delta[t]
        delta[t] = rise
        if limited and rise > 0 and over[t] + rise > 0:
            fits = False
            desk.marks[t] = True
    if fits:
        for t in range(low, high):
            over[t] += delta[t]
        for b in range(size):
            choices[desk.block[b]] = desk.new[b]
    for t in range(low, min(high + 1, len(delta))):
        delta[t] = 0
    return fits


@kernel
def _raise(desk, prices, weight, floor):
    """Doubles the price of the marked moments, for this block only."""
    total = 0.0
    for t in range(len(prices)):
        price = weight * prices[t] + desk.local[t]
        if desk.marks[t]:
            desk.marks[t] = False
            desk.local[t] += max(price, floor)
            price = weight * prices[t] + desk.local[t]
        desk.prefix[t] = total
        total += price
    desk.prefix[len(prices)] = total


@kernel
def _work(net, desk, prefix, weight, size):
    """What each choice of the block costs with its noise and its memory at prices."""
    for b in range(size):
        v = desk.block[b]
        k = net.offsets[v + 1] - net.offsets[v]
        for c in range(k):
            desk.work[b, c] = desk.noisy[b, c]
        for j in range(net.span_first[v], net.span_first[v + 1]):
            s = net.spans[j]
            price = weight * (prefix[net.span_to[s]] - prefix[net.span_from[s]])
            if price > 0:
                at = net.span_starts[s]
                for c in range(k):
                    desk.work[b, c] += price * net.usage[at + c]


@kernel
def _change(net, desk, choices, step, size):
    """By how much the new choices of the block change the cost."""
    change = 0.0
    for b in range(size):
        v = desk.block[b]
        k = net.offsets[v + 1] - net.offsets[v]
        change += desk.own[b, desk.new[b]] - desk.own[b, choices[v]]
        for j in range(net.first[v], net.first[v + 1]):
            u = net.near[j]
            if desk.stamp[u] == step and desk.where[u] < b:
                row = net.at[j]
                change += net.tables[row + desk.new[desk.where[u]] * k + desk.new[b]]
                change -= net.tables[row + choices[u] * k + choices[v]]
    return change


@kernel
def walk(
    net, desk, choices, over, best, state, random, prices,
    steps, temperature, largest, entries, most, limited, weight, floor, ranks,
):  # fmt: skip
    """`steps` steps with blocks of up to `largest` nodes and tables of up to `entries`.

    With `ranks`, blocks are regions, their nodes in the falling order of one of these.
    """
    desk.stamp[:] = -1
    desk.tried[:] = -1
    paid = np.zeros(len(prices) + 1)
    paid[1:] = np.cumsum(prices)
    for step in range(steps):
        if len(ranks) > 0:
            rank = ranks[_next(random) % len(ranks)]
            size = _region(net, desk, random, step, largest, entries, most, rank)
        else:
            wanted = 1 + _next(random) % largest
            size = _grow(net, desk, random, step, wanted, entries, most)
        if size == 0:
            continue
        _gather(net, desk, choices, step, size)
        for b in range(size):
            v = desk.block[b]
            for c in range(net.offsets[v + 1] - net.offsets[v]):
                desk.noisy[b, c] = desk.own[b, c]
                if temperature > 0:
                    desk.noisy[b, c] -= temperature * desk.noise[_next(random) >> 48]
        _work(net, desk, paid, weight, size)
        for turn in range(TRIES):
            sums = _minimise(net, desk, choices, step, size, most)
            if sums < 0:
                break
            state[4] += sums + 64 * size
            change = _change(net, desk, choices, step, size)
            if _move(net, desk, choices, over, step, size, limited):
                state[0] += change
                state[2] += 1
                if turn > 0:
                    state[5] += 1
                if limited and state[0] < state[1]:
                    state[1] = state[0]
                    best[:] = choices
                break
            state[3] += 1
            if turn == 0:
                desk.local[:] = 0.0
            _raise(desk, prices, weight, floor)
            _work(net, desk, desk.prefix, 1.0, size)
