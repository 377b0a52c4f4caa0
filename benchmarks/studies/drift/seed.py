"""The SEED drift detector: ADWIN's test at the borders of blocks, which are merged if similar."""

from __future__ import annotations

import math

from evaluation.drift.alarm import Change, change, share, within


class Seed:
    """Huang, Koh, Dobbie & Pears 2014, *Detecting volatility shift in data streams* (ICDM).

    Rows are collected in blocks.  When a block is full, the window is split at each border, from
    the newest to the oldest; the first split whose means differ by more than
    ``sqrt(2 m v d) + 2/3 d m`` is the change, where ``m = 1/n0 + 1/n1``, ``v`` is the variance in
    the window and ``d = ln(2 ln(n) / delta)``.  Rows before the split are dropped.  Every ``every``
    blocks, neighbouring blocks are merged if their means differ by less than
    ``i * epsilon * growth``, where ``i`` counts from the newest border.

    Deviations: the variance is that of the values in the window (MOA's code sums a lagging estimate
    that is not subtracted exactly); ``blocks_max`` bounds the memory.  The defaults are those that
    the KDD'26 benchmark (arXiv:2606.07789) tuned on its other streams for Electricity.

    Parameters:
        delta: In (0, 1); smaller values give fewer false alarms.
        block: Rows of a block, and between two tests; ≥ 2.
        epsilon, growth: In (0, 1); larger values merge less similar neighbours.
        every: Blocks between two rounds of merging; ≥ 2.
        blocks_max: Greatest number of blocks; beyond it the oldest two are merged.
    """

    def __init__(
        self,
        *,
        delta: float = 0.001,
        block: int = 32,
        epsilon: float = 0.0075,
        growth: float = 0.5,
        every: int = 75,
        blocks_max: int = 512,
    ) -> None:
        for name, value in (("delta", delta), ("epsilon", epsilon), ("growth", growth)):
            within(name, value, 1e-12, 1.0)
        for name, value in (("block", block), ("every", every), ("blocks_max", blocks_max)):
            within(name, value, 2, 1_000_000)
        self._delta, self._block, self._every = delta, block, every
        self._step, self._blocks_max = epsilon * growth, blocks_max
        self._ns: list[int] = []  # the oldest block first
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._since = 0  # blocks since the last round of merging
        self._open_n, self._open_sum, self._open_square = 0, 0.0, 0.0

    def update(self, x: float) -> Change | None:
        """Add one number in [0, 1]; return the change if this row reveals one."""
        x = share(x)
        self._open_n += 1
        self._open_sum += x
        self._open_square += x * x
        if self._open_n < self._block:
            return None
        self._ns.append(self._open_n)
        self._sums.append(self._open_sum)
        self._squares.append(self._open_square)
        self._open_n, self._open_sum, self._open_square = 0, 0.0, 0.0
        change = self._test()
        self._since += 1
        if self._since > self._every:
            self._since = 0
            self._merge_alike()
        if len(self._ns) > self._blocks_max:
            self._join(0)
        return change

    def _test(self) -> Change | None:
        ns, sums = self._ns, self._sums
        n, total = sum(ns), sum(sums)
        variance = max(sum(self._squares) / n - (total / n) ** 2, 0.0)
        d = math.log(2.0 * math.log(n) / self._delta) if n > 1 else 0.0
        n1, sum1 = 0, 0.0
        for i in range(len(ns) - 1, 0, -1):
            n1 += ns[i]
            sum1 += sums[i]
            n0, sum0 = n - n1, total - sum1
            m = 1.0 / n0 + 1.0 / n1
            bound = math.sqrt(2.0 * m * variance * d) + 2.0 / 3.0 * d * m
            if abs(sum1 / n1 - sum0 / n0) > bound:
                del self._ns[:i], self._sums[:i], self._squares[:i]
                return change(sum0, n0, sum1, n1)
        return None

    def _merge_alike(self) -> None:
        """Merge similar neighbours from the newest border to the oldest."""
        likeness = 0.0
        for i in range(len(self._ns) - 2, -1, -1):
            likeness += self._step
            older, newer = self._sums[i] / self._ns[i], self._sums[i + 1] / self._ns[i + 1]
            if abs(older - newer) < likeness:
                self._join(i)

    def _join(self, i: int) -> None:
        self._ns[i] += self._ns.pop(i + 1)
        self._sums[i] += self._sums.pop(i + 1)
        self._squares[i] += self._squares.pop(i + 1)
