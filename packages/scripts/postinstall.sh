#!/bin/sh
# Debian: `configure [old version]`. Everything may be repeated.
set -e
[ "$1" = configure ] || exit 0
# An agent that starts often should not compile each time; whoever runs it may not write here.
/usr/lib/mlferry/bin/python3 -I -m compileall -q /usr/lib/mlferry/site-packages >/dev/null || true
# The user and the directories of the system-wide agent. No unit is enabled: none works before it is told a server and a token.
if command -v systemd-sysusers >/dev/null; then systemd-sysusers mlferry.conf; fi
if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create mlferry.conf || true; fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
  # An upgrade: agents go on with the new version. What they had acknowledged is in their ledgers.
  if [ -n "$2" ]; then systemctl try-restart mlferry-agent.service 'mlferry-agent@*.service' || true; fi
fi
