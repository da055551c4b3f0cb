"""The pool of KV blocks of one engine, with a prefix cache in least-recently-used order.

Blocks of text that nobody shares are only counted. Blocks named by prefix hashes keep their content when they become free and
are taken back, oldest first, when blocks run out. Source: vLLM V1's block pool (hash of each full block, free queue in LRU
order).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

__all__ = ["BlockPool"]


class BlockPool:
    """`n_blocks` blocks of `block_size` tokens.

    `n_free` counts blocks that can be handed out, those with cached content included.
    """

    __slots__ = (
        "_idle", "_n_idle", "_users", "_width", "block_size", "caching", "n_blocks", "n_free", "n_hit_tokens", "n_seen_tokens",
    )  # fmt: skip

    def __init__(self, n_blocks: int, block_size: int = 16, *, caching: bool = True) -> None:
        self.n_blocks, self.n_free, self.block_size, self.caching = n_blocks, n_blocks, block_size, caching
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._width: dict[int, int] = {}
        self._n_idle = 0
        self.n_hit_tokens = 0
        self.n_seen_tokens = 0

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens`."""
        return -(-tokens // self.block_size)

    @property
    def occupancy(self) -> float:
        """Share of blocks that live sequences hold."""
        return 1.0 - self.n_free / self.n_blocks

    def hits(self, hashes: SequenceOf[int], hash_tokens: int, input_tokens: int) -> int:
        """How many leading hashes are cached; at least one input token is left to compute."""
        if not self.caching or not hashes:
            return 0
        most = min(len(hashes), (input_tokens - 1) // hash_tokens)
        n = 0
        while n < most and (hashes[n] in self._users or hashes[n] in self._idle):
            n += 1
        return n

    def n_idle_among(self, hashes: SequenceOf[int]) -> int:
        """Blocks of these hashes that count as free now and would not be once shared."""
        return sum(self._width[h] for h in hashes if h in self._idle)

    def share(self, hashes: SequenceOf[int]) -> None:
        """Use cached blocks: they leave the free list if nobody used them."""
        for h in hashes:
            if h in self._idle:
                del self._idle[h]
                self.n_free -= self._width[h]
                self._n_idle -= self._width[h]
                self._users[h] = 1
            else:
                self._users[h] += 1

    def take(self, n: int) -> None:
        """Hand out `n` blocks; cached content is forgotten, oldest first, as far as empty blocks do not suffice."""
        self.n_free -= n
        while self.n_free < self._n_idle:
            h, _ = self._idle.popitem(last=False)
            self._n_idle -= self._width.pop(h)

    def give(self, n: int) -> None:
        """Take back `n` blocks without content."""
        self.n_free += n

    def publish(self, hashes: SequenceOf[int], hash_tokens: int) -> int:
        """Name computed blocks of a live sequence; returns how many of its blocks are shared from now on."""
        if not self.caching:
            return 0
        width = hash_tokens // self.block_size
        n = 0
        for h in hashes:
            if h in self._users or h in self._idle:
                break
            self._users[h], self._width[h] = 1, width
            n += 1
        return n

    def release(self, hashes: SequenceOf[int]) -> None:
        """Stop using shared blocks; those without users are free but keep their content until taken. Last block first."""
        for h in reversed(hashes):
            self._users[h] -= 1
            if not self._users[h]:
                del self._users[h]
                self._idle[h] = None
                self.n_free += self._width[h]
                self._n_idle += self._width[h]
