"""The status page: what the agent does, for a browser, a probe and Prometheus. It shows, and changes nothing.

Theory of operation. Nothing here is on the way of a record: the page reads the spool and the ledger as ``mlferry status``
does, in a thread of its own, for a bounded share of the time, and only while somebody looks (``surveys``, ``surveyor``).
Who looks is written to the newest state alone, and is dropped when he does not read (``streams``); connections are counted
(``listening``). What names a run or quotes a server is text from strangers: made printable here, and put into the page as
text there.
"""
