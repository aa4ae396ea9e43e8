"""What can go wrong in the agent, one class an outcome.

Owns the agent's exception classes and nothing else: it decides no policy and logs nothing. The docstring of each class
is the operator's message: what happened, what was kept, what to do. `reason` carries the detail of the one case; it
never contains a secret.
"""

from __future__ import annotations


class AgentError(Exception):
    """The agent could not do what it was asked. Nothing that was spooled is lost; the reason says what stands in the way."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unencodable(AgentError):
    """This record cannot be said to an MLflow server: the server would refuse it, or accept it and store something else.

    It was not sent. The record stays in the spool, and the rest of its run is delivered. Look at the reason with
    `mlferry status`, then drop the record; sending it again cannot help.
    """


class UndeliverableName(AgentError):
    """An MLflow server would refuse an artifact of this name, or store it under another name.

    It was not sent. The file stays in the spool and the rest of its run is delivered. Fetch it from the spool, or log
    it again under a plain name.
    """


class NotProxied(AgentError):
    """The run's artifacts live neither behind the tracking server nor in a store that is reached from here.

    Nothing was sent. A place in s3://, gs://, wasbs:// or abfss:// is reached once MLFERRY_STORES names it: set that, then
    `mlferry retry`. Else start the server with --serve-artifacts, for new experiments: an old one keeps its place.
    """


class WrongDestination(AgentError):
    """The tracking URI is not one that the agent can deliver to.

    Nothing was sent and everything is kept. Set MLFLOW_TRACKING_URI for the agent to the http:// or https:// address
    of an MLflow server.
    """


class Misconfigured(AgentError):
    """The agent and the server do not agree on how to talk: credentials, certificates, proxy or host name.

    Delivery to this server is paused and everything is kept. Correct what the reason names; delivery then goes on.
    """


class Unreachable(AgentError):
    """No whole answer came back from the server.

    Whether the server acted on the request is unknown. Everything is kept, and the agent tries again by itself.
    """


class UnreadableFile(AgentError):
    """A file that should be uploaded could not be read, or is not as long as it was when it was spooled.

    The upload was broken off, so the server keeps no half of it. Check the disk that holds the spool.
    """


class LedgerBusy(AgentError):
    """Another mlferry process delivers by this ledger.

    Nothing is wrong: it carries the same spool to the same server. Let it work, stop it, or name another MLFERRY_STATE_DIR.
    """


class LedgerUnusable(AgentError):
    """The ledger, in which the agent notes what was acknowledged, cannot be opened, read or written.

    The spool was not touched. Make room for the state directory, or make it writable for this user, or name another one with
    MLFERRY_STATE_DIR. Move one away that is damaged: a ledger that is lost costs re-sending, never loss or duplicates.
    """


class FileTrouble(AgentError):
    """The operating system refused a file or directory that the command needs.

    Nothing was deleted and everything is kept. Look at its owner, its permissions and the room on its disk.
    """


class RunDelayed(AgentError):
    """The server is unwell and could not take one run for now; every other run goes on.

    Everything of it is kept in the spool, and it is tried again by itself.
    """


class GaveUp(AgentError):
    """The server could not be reached for as long as this command was told to wait.

    Everything is kept in the spool. Run the command again when the server is back, or leave it to `mlferry agent`.
    """


class RunParked(AgentError):
    """One run cannot be delivered as things stand; every other run goes on.

    Everything of it is kept in the spool. Mend what the reason names (restore the run or experiment on the server), then
    `mlferry retry RUN`.
    """


class RunGone(RunParked):
    """The server does not know a run any more that it knew; every other run goes on.

    Everything of it is kept in the spool. Look whether this is the right server and workspace. Then `mlferry retry RUN` with
    `mlferry sync --deleted recreate` delivers all of it again, and `mlferry drop RUN` gives it up.
    """


class RunDeleted(RunGone):
    """Somebody deleted the run or its experiment on the server; every other run goes on.

    Everything of it is kept in the spool. Restore it there, then `mlferry retry RUN`; or `mlferry retry RUN` and
    `mlferry sync --deleted recreate`, which delivers all of it again; or `mlferry drop RUN`, which gives it up.
    """


class RecordRefused(AgentError):
    """The server refuses one record for good; everything else goes on.

    It is kept in the spool and set aside with the server's words. Mend what they name, then `mlferry retry RUN`.
    """


class BadBundle(AgentError):
    """A bundle or a receipt is not what it should be, at the place that the reason names.

    Nothing of it was imported and nothing that was there was changed. Copy it again, or export it again.
    """


class Locked(AgentError):
    """A bundle or a receipt is encrypted, and nothing that was given opens it.

    Nothing of it was imported and nothing that was there was changed. Give the identity that it was encrypted for with
    `--identity FILE`.
    """


class BadKey(AgentError):
    """A key is none, or not of the kind that is needed here.

    Nothing was written. A recipient is `age1...`, `ssh-ed25519 ...` or a file of such lines; an identity is what
    `age-keygen` or `ssh-keygen` made; keys for signatures are those of `minisign -G`.
    """


class PlaceTrouble(AgentError):
    """A place that a URL names could not be reached, read or written.

    Nothing was imported, and no file is half there. Try again once that is mended; an export in parts goes on from there.
    """

    def __init__(self, reason: str, *, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


class NeedsExtra(AgentError):
    """A library that this needs is not installed.

    Nothing was changed. The reason says what installs it.
    """


class BadDatabase(AgentError):
    """The database cannot be written to: it is none of MLflow's, cannot be reached, or its tables are of another release.

    What was written before is whole, run by run; importing again goes on from there. Mend what the reason names.
    """


class NoPlace(AgentError):
    """Nobody said where the files of a run go, or they go through a server.

    The file was not copied and stays in the spool. Say with `--artifacts` where the server keeps its artifacts, and import
    again.
    """


class BadSource(AgentError):
    """What should be imported is nothing that mlferry can read, or is damaged; the reason says what.

    Nothing of it was imported, and neither it nor the spool was changed. `docs/importing.md` lists what can be imported.
    """


class BadConfiguration(AgentError):
    """A setting of the agent is not what its name asks for.

    Nothing was started. Correct the place that the reason names.
    """


class NoDestination(AgentError):
    """Nobody said which server to deliver to.

    Nothing was sent and everything is kept. Give `--to http://your-mlflow-server:5000`, or set MLFERRY_TO.
    """


class NoSuchRun(AgentError):
    """The spool holds no run of this id.

    `mlferry status` lists the runs it holds; MLFERRY_DIR or --dir names another spool.
    """


class NoSuchRecord(AgentError):
    """Nothing in quarantine has this id.

    Nothing was dropped. `mlferry status` lists what is set aside, each record with its id.
    """


class UnknownId(AgentError):
    """Nothing that was delivered to this server has this id, here or there.

    Nothing was changed. `mlferry status` lists the runs of the spool; --to names another server.
    """


class DemoFailed(AgentError):
    """The demo could not be shown.

    Nothing outside its own directory was touched. The reason says what to install or which log to read.
    """


class NoFilters(AgentError):
    """Runs cannot be filtered or ordered here, since that is MLflow's own search and it is missing or fails.

    Nothing was changed. Install MLflow beside mlferry, or leave `--filter` and `--order-by` away.
    """


class BadFilter(AgentError):
    """MLflow does not understand the filter or the order.

    Nothing was changed. Write it as for `mlflow.search_runs`, such as `metrics.loss < 0.1 and params.lr = '0.01'`.
    """


class NoUi(AgentError):
    """MLflow's UI cannot be shown here.

    Nothing was changed. Install MLflow beside mlferry (`pip install 'mlferry[mlflow]'`), or name a free address with
    `--host` and `--port`; `mlferry ls`, `show` and `watch` need neither.
    """


class CleanBusy(AgentError):
    """Another `mlferry clean` is at work on this spool.

    Nothing was deleted by this one. Wait until the other one has ended.
    """


class NotReserved(AgentError):
    """No run could be prepared on the server.

    Nothing else was changed. Mend what the reason names; or let the job begin without: it gets its run when it is delivered.
    """


class Defect(AgentError):
    """This is a defect of mlferry, not a mistake of yours.

    What was logged is in the spool as it was, and nothing arrives twice if you try again. Please report it, with what the
    same command says when MLFERRY_DEBUG is set to 1.
    """


class NoSuchProgram(AgentError):
    """There is no such program to run. Nothing was started; look at its name, and at PATH."""
