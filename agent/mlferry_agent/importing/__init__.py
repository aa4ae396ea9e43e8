"""What people already have -> runs of the spool: MLflow stores, TensorBoard event files, wandb's offline runs.

A source is read into ``content``, whatever it is; ``writing`` makes records of that, leaving out what the spool has; and
``taking`` puts them into place, whole or not at all. Nothing here is imported before `mlferry import` needs it.
"""
