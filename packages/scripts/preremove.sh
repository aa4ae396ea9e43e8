#!/bin/sh
# Debian: `remove`, or `upgrade NEW`, during which agents go on.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now mlferry-agent.service || true
  systemctl stop 'mlferry-agent@*.service' || true
fi
# Byte code of before would otherwise keep directories alive.
find /usr/lib/mlferry -name __pycache__ -type d -prune -exec rm -r {} +
