"""The spool: format, writer and tailer of mlferry. Stands on the standard library and msgpack alone."""
