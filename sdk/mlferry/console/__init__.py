"""What a training prints, as artifacts of its run, while it prints: on request only.

Theory of operation
-------------------
*Descriptors, not ``sys.stdout``.* C libraries, faulthandler and subprocesses write to the descriptors 1 and 2. So those
are exchanged for a pipe (``descriptors``; for a pseudo terminal where they were a terminal, so that bars and colours stay).

*A process reads it, not a thread.* C code that holds the GIL and prints would wait for a reader that waits for the GIL. The
reader is a child in a session of its own (``child``), of the standard library, msgpack and the spool alone. It writes what
it reads to where it would have gone, and only then thinks of keeping it.

*Whoever dies, the training prints on.* The child is two processes: one works, the other waits and does nothing but pass on
what is printed should the first die. Should both, a thread here puts the descriptors back. The training holds the reading
end as well, so no write meets a pipe without a reader (EPIPE).

*Whoever hangs, too.* In the child one thread passes on, another one stores. A disk that does not answer makes the store lag,
then lose text, which is counted in the text itself; it never makes the first thread wait.

*The run is not the child's.* It writes as a *guest* of the run: neither its life nor its death says anything of the run. The
end of the run waits, for a few seconds at most, until the child has stored what stood in the pipe.

*Parts.* A file of a server can be replaced but not appended to. So the text is cut into parts; the last one is sent again
at growing intervals, and closed after so many sendings, so that no byte is sent more often than that.
"""
