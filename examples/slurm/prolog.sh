#!/bin/bash
# Slurm's Prolog, as root on each node before a job: a place for its spool on the node's own disk.
#   slurm.conf: Prolog=/etc/slurm/mlferry/prolog.sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin  # Slurm sets none
spools=/local/mlferry

# A prolog that fails drains the node. Where the place cannot be made, task_prolog.sh leaves the job's spool where it was.
mkdir -p "$spools" && install -d -m 700 -o "$SLURM_JOB_UID" "$spools/$SLURM_JOB_ID"
exit 0
