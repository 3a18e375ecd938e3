"""k nearest neighbours on frozen features, exact: every prediction is that of a brute force.

nearest_neighbors(train, test, k, distance): similarity and index
knn_predict, knn_accuracy: classification with one setting
knn_grid: many settings of k, temperature and distance from one search
few_shot_1nn: 1-NN with a few labels a class
knn_eval, few_shot_eval: of a run, with the results stored
"""

from solo_minent.evaluation.knn.classify import (
    few_shot_1nn,
    knn_accuracy,
    knn_grid,
    knn_predict,
)
from solo_minent.evaluation.knn.command import few_shot_eval, knn_eval
from solo_minent.evaluation.knn.inputs import DISTANCES
from solo_minent.evaluation.knn.neighbors import nearest_neighbors

__all__ = [
    "DISTANCES",
    "few_shot_1nn",
    "few_shot_eval",
    "knn_accuracy",
    "knn_eval",
    "knn_grid",
    "knn_predict",
    "nearest_neighbors",
]
