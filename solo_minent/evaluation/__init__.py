"""Evaluation: a backbone in, numbers with their protocol out.

A command each: linear, knn, finetune, cluster, transfer, detect, umap. Under them: targets (what is
evaluated), features and cache (computed once), predictions (a run's own classes), training and
protocols (what linear and finetune share), logistic and multilabel (what transfer needs),
detection_* (data, models, training and metrics of detect), results (how a number is stored).
"""
