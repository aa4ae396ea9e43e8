"""What a training prints, as artifacts of its run: on request (``MLFERRY_CAPTURE``, ``start_run(capture=True)``).

Why a process of its own. Libraries in C, NCCL, ``faulthandler`` and subprocesses print past Python, so it is the
descriptors 1 and 2 that are led through a pipe. Whoever empties that pipe must not be a thread of the training: C code
that prints while it holds the interpreter's lock would wait for a thread that waits for the lock. And it must outlive a
SIGKILL of the training, as what was printed last is what one wants to read then. So a small process stands in between
(``relay``), as ``tee`` would: first it hands on what comes, to where it would have gone, then it keeps it (``recorder``).

* ``capturing`` is the training's side: it starts the process, and gives the descriptors back at the end of the run. If the
  process dies it gives them back at once, and hands on what stood in the pipe itself.
* ``relay`` is the process. It ends with the run, or when the training has died and nothing more comes. Its log is that of a
  *helper*: it keeps the run open until the last of the output is in the spool, and its death says nothing about the run.
* ``parts`` decides what is kept under which name, and when: pure.
* ``lines`` makes lines of bytes, and one of all states of a progress bar: pure.

The training waits for its own output as it does for a terminal or ``tee``, and for nothing else: whatever the disk of the
spool does, the output goes on to where it would have gone.
"""
