"""What peers offer for S and Q: clusterings, silhouettes and NMIs, as a user would call them.

Every clustering is the best of ten seedings by its own objective. ``fit_*`` take rows (n, dim),
``fit_all_*`` sets (problems, n, dim); labels come back in NumPy. Peers are imported when called:
all but scikit-learn may be absent. Those of cuML and flash-kmeans follow their documentation and
were not run on a GPU yet.
"""

from __future__ import annotations

import numpy as np

RESTARTS = 10
MEMORY = 1 << 30
"""Bytes that torch_kmeans may have for what it holds of every (problem, seeding, row, cluster)."""

_HELD = 4  # arrays of that size at a time: points, centres, their difference, its square


def fit_scikit_learn(rows: np.ndarray, k: int) -> np.ndarray:
    """Euclidean K-means on unit rows, the best of ten seedings by its own objective."""
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=RESTARTS, random_state=0).fit(rows).labels_


def fit_faiss(rows: np.ndarray, k: int) -> np.ndarray:
    """Spherical K-means, the best of ten seedings; it stops once nothing changes."""
    import faiss

    means = faiss.Kmeans(
        rows.shape[1], k, nredo=RESTARTS, spherical=True, min_points_per_centroid=1, seed=1
    )
    means.train(rows)
    return means.index.search(rows, 1)[1][:, 0]


def fit_fast_pytorch_kmeans(rows: np.ndarray, k: int, device: str) -> np.ndarray:
    """K-means by cosine; it has one seeding, so a loop keeps the best."""
    import torch
    from fast_pytorch_kmeans import KMeans

    torch.manual_seed(0)
    x = torch.from_numpy(rows).to(device)
    found = []
    for _ in range(RESTARTS):
        means = KMeans(k, mode="cosine", init_method="kmeans++")
        found.append(means.fit_predict(x).cpu().numpy())
    return max(found, key=lambda labels: objective(rows, labels))


def fit_all_torch_kmeans(sets: np.ndarray, k: int, device: str) -> np.ndarray:
    """Euclidean K-means on unit rows, all sets at once, as many as fit :data:`MEMORY`."""
    import torch
    from torch_kmeans import KMeans

    means = KMeans(init_method="k-means++", num_init=RESTARTS, seed=0, verbose=False)
    _, n, dim = sets.shape
    step = max(1, MEMORY // (_HELD * RESTARTS * n * k * dim * sets.itemsize))
    parts = torch.from_numpy(sets).to(device).split(step)
    return torch.cat([means(part, k=k).labels for part in parts]).cpu().numpy()


def fit_all_flash_kmeans(sets: np.ndarray, k: int, device: str) -> np.ndarray:
    """Euclidean K-means on unit rows, all sets at once; one seeding a call, the best is kept."""
    import torch
    from flash_kmeans import FlashKMeans

    x = torch.from_numpy(sets).to(device)
    best = torch.full((len(x),), -torch.inf, device=device)
    kept = torch.zeros(x.shape[:2], dtype=torch.int64, device=device)
    for seed in range(RESTARTS):
        means = FlashKMeans(x.shape[2], k, seed=seed, device=torch.device(device))
        labels = means.fit_predict(x).to(torch.int64)
        inside = torch.nn.functional.one_hot(labels, k).to(x.dtype)
        reached = (inside.mT @ x).norm(dim=2).sum(1)
        better = reached > best
        best, kept = torch.where(better, reached, best), torch.where(better[:, None], labels, kept)
    return kept.cpu().numpy()


def fit_cuml(rows: np.ndarray, k: int) -> np.ndarray:
    """Euclidean K-means on unit rows on the GPU, the best of ten seedings."""
    from cuml.cluster import KMeans

    means = KMeans(
        n_clusters=k, n_init=RESTARTS, init="k-means++", random_state=0, output_type="numpy"
    )
    return np.asarray(means.fit(rows).labels_)


def silhouette_scikit_learn(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine silhouette."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(rows, labels, metric="cosine"))


def silhouette_cuml(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine silhouette on the GPU."""
    from cuml.metrics.cluster import silhouette_score

    return float(silhouette_score(rows, labels, metric="cosine"))


def silhouette_gram(rows: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine silhouette from one matrix product and sums over the clusters."""
    distance = 1.0 - rows @ rows.T
    inside = (labels[:, None] == np.unique(labels)).astype(rows.dtype)
    sums, sizes = distance @ inside, inside.sum(0)
    own = inside.astype(bool)
    size = inside @ sizes
    within = (sums[own] - distance.diagonal()) / np.maximum(size - 1, 1)
    between = np.where(own, np.inf, sums / sizes).min(1)
    between = np.where(np.isinf(between), within, between)  # one cluster: 0
    value = (between - within) / np.maximum(np.maximum(within, between), 1e-12)
    return float(np.where(size > 1, value, 0.0).mean())


def silhouettes_torch(sets: np.ndarray, labels: np.ndarray, device: str) -> np.ndarray:
    """Mean cosine silhouettes (problems,) of all sets at once, as :func:`silhouette_gram`."""
    import torch

    x, found = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (sets, labels))
    distance = 1.0 - x @ x.mT
    own = torch.nn.functional.one_hot(found.to(torch.int64)).to(torch.bool)
    inside = own.to(x.dtype)
    sizes = inside.sum(1)
    sums = distance @ inside
    size = inside @ sizes[:, :, None]
    within = ((sums * inside).sum(2) - distance.diagonal(dim1=1, dim2=2)) / (
        size[..., 0] - 1
    ).clamp(min=1)
    there = ~own & (sizes > 0)[:, None]
    between = (sums / sizes.clamp(min=1)[:, None]).masked_fill(~there, torch.inf).amin(2)
    between = torch.where(between.isinf(), within, between)  # one cluster: 0
    value = (between - within) / torch.maximum(within, between).clamp(min=1e-12)
    return torch.where(size[..., 0] > 1, value, 0.0).mean(1).cpu().numpy()


def nmi_scikit_learn(assignments: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """NMI of one labeling with many (count, patches), one call each."""
    from sklearn.metrics import normalized_mutual_info_score

    return np.array([normalized_mutual_info_score(assignments, row) for row in shuffled])


def nmi_torchmetrics(assignments: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """The same by torchmetrics, by its function: its class costs several times more a call."""
    import torch
    from torchmetrics.functional.clustering import normalized_mutual_info_score

    one, many = (torch.from_numpy(np.asarray(x, np.int64)) for x in (assignments, shuffled))
    return np.array([float(normalized_mutual_info_score(one, row)) for row in many])


def nmi_counting(assignments: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """NMI of one labeling with many permutations (count, patches) of another, at once."""
    count, patches = shuffled.shape
    a = np.unique(assignments, return_inverse=True)[1]
    b = np.unique(shuffled, return_inverse=True)[1].reshape(shuffled.shape)
    width = b.max() + 1
    cells = (a.max() + 1) * width
    place = np.arange(count)[:, None] * cells + a * width + b
    joint = np.bincount(place.ravel(), minlength=count * cells).reshape(count, -1, width)
    t_joint = _n_log_n(joint).sum((1, 2))
    t_a, t_b = _n_log_n(joint.sum(2)).sum(1), _n_log_n(joint.sum(1)).sum(1)
    whole = patches * np.log(patches)
    entropy = 2 * whole - t_a - t_b
    return np.where(entropy > 0, 2 * (whole + t_joint - t_a - t_b) / np.maximum(entropy, 1e-12), 0)


def _n_log_n(count: np.ndarray) -> np.ndarray:
    return count * np.log(np.maximum(count, 1))


def objective(rows: np.ndarray, labels: np.ndarray) -> float:
    """Σ_j ‖Σ_{i∈C_j} z_i‖ in float64."""
    inside = (np.unique(labels)[:, None] == labels).astype(np.float64)
    return float(np.linalg.norm(inside @ rows, axis=1).sum())
