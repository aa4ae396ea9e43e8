#!/bin/bash
# Slurm's Epilog, as root on each node after a job (and before it is requeued): brings its spool away, as the job's user.
#   slurm.conf: Epilog=/etc/slurm/mlferry/epilog.sh
#
# Where the node reaches the server: delivers, reads the server back, deletes. Where it does not, or not in time: copies the
# spool to the user's own, on the file system that the login node sees, for the agent there. What fails both ways stays.
# The server's address comes from /etc/mlferry/agent.toml, the secret from ~/.config/mlferry/token or ~/.mlflow/credentials.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin  # Slurm sets none
mlferry=/opt/mlferry/bin/mlferry
spools=/local/mlferry
# Slurm keeps the node until the epilog is over.
patience_s=60

job=$spools/$SLURM_JOB_ID
home=$(getent passwd "$SLURM_JOB_UID" | cut -d: -f6)

# Homes may be closed to root, so the user looks.
with_token='token=$HOME/.config/mlferry/token; [ ! -r "$token" ] || export MLFERRY_TOKEN_FILE=$token; exec "$@"'

as_the_user() {
  timeout --kill-after=10 $((2 * patience_s)) runuser -u "$SLURM_JOB_USER" -- \
    env -i PATH="$PATH" HOME="$home" sh -c "$with_token" sh "$@" </dev/null
}

if [ -d "$job/spool" ]; then
  where=(--dir "$job/spool" --state-dir "$job/state" --quiet)
  as_the_user "$mlferry" sync "${where[@]}" --give-up-after "$patience_s" &&
    as_the_user "$mlferry" clean "${where[@]}" --older-than 0 --yes
  # Whatever is still there: parts of it may be on the server already, which are recognised when they come again.
  if [ -n "$(ls -A "$job/spool/runs" 2>/dev/null)" ]; then
    as_the_user mkdir -p "$home/.local/share/mlferry" &&
      as_the_user cp -a "$job/spool/." "$home/.local/share/mlferry/" || exit 0
  fi
fi
rm -rf "$job"
# An epilog that fails drains the node.
exit 0
