"""The fast lane: runs of a spool, written straight into the database of an MLflow server, for who owns it.

The one place but for a command of ``importing`` where the agent meets MLflow itself, and only while `mlferry import --into`
runs: the tables and their rules are those of the installed MLflow, whose schema the database must have to the revision.
"""
