"""MLflow's own interfaces on a spool: what ``MLFLOW_TRACKING_URI=spool:`` leads to under unmodified MLflow code.

Data goes one way on each side. Writes: ``tracking`` (and ``registry``, ``artifacts``) -> ``journal`` -> the spool's writer.
Reads: the spool's files -> ``mlferry_spool.catalogue`` -> ``entities`` -> MLflow. A write never reads a run back.

Only ``entry`` is imported by every ``import mlflow``; everything else waits until a ``spool:`` URI is used.
"""
