"""Every SID of a trie, by walking it as a search would."""

from __future__ import annotations

import numpy as np

from store.topology.layout_trie import LayoutTrie


def sids_of_trie(trie: LayoutTrie) -> list[tuple[int, ...]]:
    """SID token numbers of every live SID, in the order in which the trie gives them."""
    last_layer = (trie.layout.layers - 1) * trie.layout.size
    found: list[tuple[int, ...]] = []
    prefixes = trie.first_tokens()[:, None]
    while len(prefixes):
        owner, token = trie.children(prefixes)
        longer = np.concatenate((prefixes[owner], token[:, None]), axis=1)
        ended = token >= last_layer
        found += [tuple(row) for row in longer[ended].tolist()]
        prefixes = longer[~ended]
    return found
