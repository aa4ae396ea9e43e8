#!/usr/bin/env bash
# Across an air gap: train where there is no network, carry one file, deliver where there is a server, and carry the receipt
# back, so that the next bundle holds only what is new, and what has arrived can be cleaned away.
#
#     examples/air_gap.sh http://127.0.0.1:5000
#
# Here both sides are folders of this machine; the bundle and the receipt are the only things that cross.
set -euo pipefail
server=$1
stick=$(mktemp -d)                                             # what is carried
inside=$(mktemp -d) outside=$(mktemp -d)                       # a spool on either side
here=$(dirname "$0")

MLFERRY_DIR=$inside python "$here/sweep.py"
mlferry export "$stick/monday.tar.zst" --dir "$inside"

mlferry import "$stick/monday.tar.zst" --dir "$outside"        # writes a receipt beside the bundle
mlferry sync --to "$server" --dir "$outside"
mlferry verify --to "$server" --dir "$outside"

# The receipt has travelled back: the next bundle leaves out what has arrived, and room can be made.
MLFERRY_DIR=$inside python "$here/series_and_checkpoints.py"
mlferry export "$stick/tuesday.tar.zst" --dir "$inside" --since "$stick/monday.tar.zst.receipt.json"
mlferry clean --dir "$inside" --receipt "$stick/monday.tar.zst.receipt.json" --older-than 0 --yes

mlferry import "$stick/tuesday.tar.zst" --dir "$outside"
mlferry sync --to "$server" --dir "$outside"
mlferry verify --to "$server" --dir "$outside"
ls -l "$stick"
