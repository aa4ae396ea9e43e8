#!/bin/bash
# Slurm's TaskProlog, as the user before each task: what it prints as `export NAME=value` is set for the task.
#   slurm.conf: TaskProlog=/etc/slurm/mlferry/task_prolog.sh
spools=/local/mlferry

# A job that chose a place of its own keeps it.
if [ -z "${MLFERRY_DIR:-}" ] && [ -w "$spools/$SLURM_JOB_ID" ]; then
  echo "export MLFERRY_DIR=$spools/$SLURM_JOB_ID/spool"
fi
