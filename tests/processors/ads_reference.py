"""ADS from its definition in float64 numpy: determinants and sets, one row at a time, no shared code."""

import math

import numpy as np

GAMMA = 4.0


def pool(z, m, top_k=0, top_p=1.0, min_p=0.0):
    """Step 1 as a set of token ids. Exact ties at the nucleus's boundary are the caller's to avoid."""
    z = np.asarray(z, dtype=np.float64)
    finite = z > -np.inf
    k = min(m, top_k) if top_k else m
    ordered = np.sort(z[finite])[::-1]
    if not len(ordered):
        return np.array([], dtype=int)
    chosen = finite & (z >= ordered[min(k, len(ordered)) - 1])
    if top_p < 1:
        p = np.where(finite, np.exp(z - z.max()), 0)
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        ahead = np.zeros_like(p)
        ahead[order] = np.cumsum(p[order]) - p[order]
        chosen &= (ahead < top_p) | (np.arange(len(z)) == order[0])
    if min_p > 0:
        chosen &= z >= z.max() + math.log(min_p)
    return np.flatnonzero(chosen)


def kernel(tokens, alpha, table):
    tokens = np.asarray(tokens)
    same = (tokens[:, None] == tokens[None, :]).astype(np.float64)
    if alpha == 0:
        return same
    v = np.asarray(table, dtype=np.float64)[tokens]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return (1 - alpha) * same + alpha * (v @ v.T)


def gains(tokens, p, covered, alpha, table):
    """Step 4 as a ratio of ridged determinants, the pool's token i left out of A by building A without it."""
    result = []
    for i in range(len(tokens)):
        others = [k for k in range(len(tokens)) if k != i]
        a = [*covered, *(tokens[k] for k in others)]
        w = np.array([*np.ones(len(covered)), *(p[k] for k in others)])
        if not a:
            result.append(1.0)
            continue
        s = kernel([*a, tokens[i]], alpha, table)
        ridged = s[:-1, :-1] + np.diag(1 / (GAMMA * np.maximum(w, 1e-300)))
        bordered = np.block([[ridged, s[:-1, -1:]], [s[-1:, :-1], s[-1:, -1:]]])
        # det(bordered) / det(ridged) = s_ii - s_iA (S_AA + W⁻¹)⁻¹ s_Ai, in logs for range
        result.append(math.exp(np.linalg.slogdet(bordered)[1] - np.linalg.slogdet(ridged)[1]))
    return np.array(result)


def ads(z, *, m, beta, covered=(), alpha=0.0, table=None, top_k=0, top_p=1.0, min_p=0.0):
    """Log r over the vocabulary, -inf outside the pool."""
    z = np.asarray(z, dtype=np.float64)
    out = np.full(len(z), -np.inf)
    tokens = pool(z, m, top_k, top_p, min_p)
    if not len(tokens):
        return out
    p = np.exp(z[tokens] - z[tokens].max())
    p /= p.sum()
    h = gains(tokens, p, list(covered), alpha, table)
    entropy = -sum(q * math.log(q) for q in p if q > 0)
    gate = min(1.0, entropy / math.log(2))
    score = np.log(np.maximum(p, 1e-300)) + gate * beta / (1 - beta) * np.log(h)
    out[tokens] = score - np.logaddexp.reduce(score)
    return out
