"""Errors of the SDK. Each docstring is what the user reads: what happened, what was kept, what to do.

Two families. ``Misuse`` is a mistake in the program (a run started twice) and is always raised, as MLflow raises it.
``NotLogged`` is one thing that could not be logged: by default it is counted and warned of, and raised only where
``MLFERRY_ON_ERROR=raise`` asks for that.
"""

from __future__ import annotations


class MlferryError(Exception):
    """Something went wrong in mlferry. What was logged before is kept."""

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        super().__init__(f"{self.says()}{f' ({detail})' if detail else ''}")

    @classmethod
    def says(cls) -> str:
        """The class's message, in one line."""
        return " ".join((cls.__doc__ or "").split())


class Misuse(MlferryError):
    """The call makes no sense where it stands. Nothing was logged by it."""


class RunAlreadyActive(Misuse):
    """A run is already active in this thread. To start a new run, first end the current run with mlferry.end_run();
    to start a nested run, call start_run with nested=True."""


class WrongParent(Misuse):
    """The given parent_run_id is not the run that is active. End the active run first, or leave parent_run_id out to
    nest below it."""


class BadRunId(Misuse):
    """A run id starts with a letter or digit and holds at most 128 letters, digits, dashes, dots and underscores. Give
    an id that MLflow or mlferry made."""


class BadExperiment(Misuse):
    """An experiment is named by a text of 1 to 500 characters, or by an id, but not by both. Give one of them."""


class BadStatus(Misuse):
    """A run ends as FINISHED, FAILED or KILLED (or is RUNNING or SCHEDULED). Give one of these."""


class DescriptionTwice(Misuse):
    """The description is given both as an argument and as the tag mlflow.note.content. Leave one of them out."""


class BadMode(Misuse):
    """An artifact is opened to write bytes to it, mode "wb". For text use mlferry.log_text, or wrap the file in
    io.TextIOWrapper(file, encoding="utf-8"); what was logged stays as it is and cannot be opened again."""


class BadSpoolUri(Misuse):
    """A spool's URI is spool: for the default one, or spool:///path, without host, query or fragment. Give one of these."""


class NeedsServer(Misuse):
    """This needs an MLflow server, and a spool is none. Do it where the server can be reached, with MLFLOW_TRACKING_URI set
    to the server's address; what was logged to the spool gets there by `mlferry sync`."""


class NotDelivered(MlferryError):
    """Delivery could not be tried. Everything waits in the spool; the reason says what to set right."""


class NotLogged(MlferryError):
    """This was not logged; everything else was."""


class BadKey(NotLogged):
    """A name holds letters, digits, spaces and _ - . : / only, at most 250 characters, and reads like a relative path
    (no leading, trailing or doubled slash, no '..'). This entry was not logged; rename it."""


class BadMetric(NotLogged):
    """A metric's value is a number, a text that reads as one, or an array or tensor with one element. This point was
    not logged; convert it with float()."""


class BadStep(NotLogged):
    """A step is a whole number of 64 bits, a timestamp one of milliseconds that is not negative. This was not logged;
    give whole numbers."""


class InCapture(NotLogged):
    """A CUDA graph is being captured here, and what is captured has no value yet. This point was not logged; log the
    tensor after each replay of the graph, outside of the capture."""


class DeviceBehind(NotLogged):
    """The program is so far ahead of this device that all memory for values on their way is taken, and no call waits
    for a device. This point was not logged; log less often, or many values by one log_metrics."""


class DeviceFailed(NotLogged):
    """The device reported an error before this value was there; often it is one of an earlier kernel. This point was
    not logged; CUDA_LAUNCH_BLOCKING=1 shows which kernel failed."""


class NeverCame(NotLogged):
    """The run has ended, and its device had still not computed this value. This point was not logged; synchronize with
    the device before the run ends."""


class BadSeries(NotLogged):
    """A series is a one-dimensional sequence of numbers, with as many steps and timestamps as values. It was not
    logged; give arrays of one length."""


class ParamChanged(NotLogged):
    """A parameter is written once and this one has another value already. The first value was kept; use another name,
    a tag, or a nested run for each value."""


class TextTooLong(NotLogged):
    """The text is longer than MLflow keeps. It was not logged; shorten it, log it as an artifact, or let
    MLFLOW_TRUNCATE_LONG_VALUES=true cut it."""


class BadText(NotLogged):
    """The text has characters that UTF-8 does not have, or is more than a record holds. It was not logged; clean it, or
    log it as an artifact."""


class BadArtifactPath(NotLogged):
    """An artifact's name is a relative path inside the run's artifacts, without '..', empty parts or control
    characters. The artifact was not logged; rename it."""


class BadArtifact(NotLogged):
    """The artifact could not be made or read. It was not logged; look at the reason."""


class BadDataset(NotLogged):
    """This is not a dataset that MLflow could keep: it needs a name (500 characters), a digest (36), and texts for
    source, schema and profile within MLflow's limits. It was not logged; see mlferry.Dataset."""


class NotStored(NotLogged):
    """The spool did not take this record: its disk is full or unwell, or the run has ended. It was counted; look at the
    disk below MLFERRY_DIR."""


class CaptureLost(NotLogged):
    """The console of this process is not, or not any more, kept as an artifact. What is printed reaches the terminal or log
    as before; what was stored is kept. Start the run anew to capture again; look at the reason."""
