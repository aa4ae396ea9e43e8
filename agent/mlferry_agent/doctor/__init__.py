"""What `mlferry doctor` looks at: this machine in ``local`` and ``agents``, the server in ``remote``."""
