"""The reference that kNN is held against."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def brute_force():
    def brute_force(train, labels, test, k, temperature, distance):
        """One test point at a time, in float64, ties by index and by label."""
        train, test = np.asarray(train, np.float64), np.asarray(test, np.float64)
        if distance == "cosine":
            train = train / np.linalg.norm(train, axis=1, keepdims=True)
            test = test / np.linalg.norm(test, axis=1, keepdims=True)
        out = []
        for point in test:
            if distance == "cosine":
                similarity = (train * point).sum(1)
            else:
                similarity = -np.sqrt(((train - point) ** 2).sum(1))
            near = np.argsort(-similarity, kind="stable")
            if distance == "cosine":  # what steps of 4 ulp join is equal, and goes by index
                steps = -np.diff(similarity[near]) > 4 * np.finfo(np.float64).eps
                near = near[np.lexsort((near, np.concatenate([[0], np.cumsum(steps)])))]
            near = near[:k]
            votes = {}
            for i in near:
                weight = 1.0 if temperature is None else np.exp(similarity[i] / temperature)
                votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + weight
            out.append(max(sorted(votes), key=votes.get))
        return out

    return brute_force
