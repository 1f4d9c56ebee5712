"""Near-duplicates among many texts, found exactly: the Jaccard similarity of their character shingles.

Symbols: S(x) the set of the five-character shingles of a normalised text x, J(x, y) = |S(x) ∩ S(y)| / |S(x) ∪ S(y)|,
and t a threshold. Wanted are all pairs with J(x, y) ≥ t, without comparing all pairs.

Put the shingles of all texts in one order, the rarest first, and let the prefix of x be its first
|S(x)| − ⌈t·|S(x)|⌉ + 1 shingles in that order.

Claim: J(x, y) ≥ t implies that the prefixes of x and y share a shingle. Proof: o = |S(x) ∩ S(y)| ≥ t·|S(x) ∪ S(y)| ≥
t·|S(x)|, so that o ≥ ⌈t·|S(x)|⌉, and the same for y. Let w be the first common shingle. No common one stands before it
in x, so at most |S(x)| − o ≤ |S(x)| − ⌈t·|S(x)|⌉ shingles do, and w is in the prefix of x; likewise in that of y. ∎

So an inverted index of the prefixes finds every candidate, and its lists are short because rare shingles come first.
It also counts the c shingles that the prefixes share. If that of x ends no later in the order than that of y, every
common shingle outside the c is one of x behind its prefix, so that |S(x) ∩ S(y)| ≤ c + ⌈t·|S(x)|⌉ − 1: most candidates
go by this bound, and the similarity of the others is computed in full. Nothing is hashed or sampled: the result is
exact and the same everywhere. The prefix is that of Chaudhuri, Ganti and Kaushik (ICDE 2006) and Bayardo, Ma and
Srikant (WWW 2007).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

SHINGLE_WIDTH = 5
_ROWS_AT_ONCE = 1024
_PAIRS_AT_ONCE = 65536
# What a reader would not miss. Signs of arithmetic stay, or half of the questions in mathematics would be the same.
_PUNCTUATION = str.maketrans(dict.fromkeys(".,;:!?…\"'`´‘’“”«»()[]{}", " "))

Indices = npt.NDArray[np.int64]


def normalise(text: str) -> str:
    """A text without what makes no difference to a reader: form of characters, case, punctuation, white space.

    >>> normalise("  How do I — in  Rome — say “No”?")
    'how do i — in rome — say no'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A text of nothing but punctuation keeps it, so that two different ones stay different.
    return " ".join(folded.translate(_PUNCTUATION).split()) or " ".join(folded.split())


def similar_pairs(texts: Sequence[str], threshold: float) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
    """All pairs of texts with a similarity of at least ``threshold``, see above.

    Args:
        texts: normalised texts.
        threshold: t, above 0 and at most 1.

    Returns:
        First and second index ``(pairs,)`` int64 with first < second, ordered by second, then first; and the
        similarity ``(pairs,)`` float64.

    Raises:
        ValueError: the threshold is outside its range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold}, not above 0 and at most 1")
    nothing = np.empty(0, dtype=np.int64)
    if len(texts) < 2:
        return nothing, nothing, np.empty(0)
    shingles = shingle_matrix(texts)
    sizes = np.diff(shingles.indptr)
    firsts, seconds, values = [nothing], [nothing], [np.empty(0)]
    for first, second in _candidates(shingles, sizes, threshold):
        shared = _shared(shingles, first, second)
        similarity = (shared / (sizes[first] + sizes[second] - shared)).astype(np.float64)
        found = similarity >= threshold
        firsts.append(first[found])
        seconds.append(second[found])
        values.append(similarity[found])
    first, second, value = np.concatenate(firsts), np.concatenate(seconds), np.concatenate(values)
    order = np.lexsort((first, second))
    return first[order], second[order], value[order]


def shingle_matrix(texts: Sequence[str], width: int = SHINGLE_WIDTH) -> sparse.csr_matrix:
    """Which text holds which shingle.

    A text stands between two spaces, so that the ends of its words count, and is filled up to one shingle.

    Args:
        texts: normalised texts, at least one.
        width: characters of a shingle.

    Returns:
        Matrix ``(texts, shingles)`` of ones, int32; columns ordered by how many texts hold the shingle, rarest first.
    """
    framed = [f" {text} ".ljust(width, "\0") for text in texts]
    lengths = np.array([len(text) for text in framed])
    code = np.frombuffer("".join(framed).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    letters, letter = np.unique(code, return_inverse=True)
    counts = lengths - width + 1
    row = np.repeat(np.arange(len(texts)), counts)
    # The position of a shingle in the joined text: that of its row, and on from there.
    skipped = np.repeat(np.cumsum(lengths) - lengths - (np.cumsum(counts) - counts), counts)
    start = np.arange(len(row)) + skipped
    key = np.zeros(len(row), dtype=np.int64)
    bound = 1
    for offset in range(width):
        if bound * len(letters) >= 2**63:
            # Too many letters to count in: go on from the rank of what was read, which is exact as well.
            ranks, key = np.unique(key, return_inverse=True)
            bound = len(ranks)
        key = key * len(letters) + letter[start + offset]
        bound *= len(letters)
    known, column = np.unique(key, return_inverse=True)
    held = np.unique(row * len(known) + column)
    row, column = held // len(known), held % len(known)
    frequency = np.bincount(column, minlength=len(known))
    place = np.empty(len(known), dtype=np.int64)
    place[np.argsort(frequency, kind="stable")] = np.arange(len(known))
    matrix = sparse.csr_matrix(
        (np.ones(len(row), dtype=np.int32), (row, place[column])), shape=(len(texts), len(known))
    )
    matrix.sort_indices()
    return matrix


def _candidates(shingles: sparse.csr_matrix, sizes: Indices, threshold: float) -> Iterator[tuple[Indices, Indices]]:
    """Pairs whose prefixes share a shingle and allow the similarity, in batches, first < second."""
    # t·|S| may come out a hair above a whole number that it equals; a prefix too long does no harm.
    prefix = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    position = np.arange(shingles.nnz) - np.repeat(shingles.indptr[:-1], sizes)
    inside = position < np.repeat(prefix, sizes)
    row = np.repeat(np.arange(len(sizes)), sizes)[inside]
    head = sparse.csr_matrix((np.ones(len(row), dtype=np.int32), (row, shingles.indices[inside])), shape=shingles.shape)
    index = head.T.tocsr()
    rest = sizes - prefix
    last = shingles.indices[shingles.indptr[:-1] + prefix - 1]
    for start in range(0, len(sizes), _ROWS_AT_ONCE):
        product = (head[start : start + _ROWS_AT_ONCE] @ index).tocoo()
        first, second = product.row.astype(np.int64) + start, product.col.astype(np.int64)
        most = product.data + np.where(last[first] <= last[second], rest[first], rest[second])
        most = np.minimum(most, np.minimum(sizes[first], sizes[second]))
        possible = (first < second) & (most / (sizes[first] + sizes[second] - most) >= threshold)
        first, second = first[possible], second[possible]
        for low in range(0, len(first), _PAIRS_AT_ONCE):
            yield first[low : low + _PAIRS_AT_ONCE], second[low : low + _PAIRS_AT_ONCE]


def _shared(shingles: sparse.csr_matrix, first: Indices, second: Indices) -> Indices:
    """How many shingles the texts of each pair share, ``(pairs,)``."""
    both = shingles[first].multiply(shingles[second])
    return np.asarray(both.sum(axis=1), dtype=np.int64).reshape(-1)
