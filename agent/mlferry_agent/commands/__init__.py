"""The verbs of `mlferry`, a module for each group: options in, exit codes out.

Nothing heavy is imported at the top of these modules (aiohttp, SQLite, plots): help and completion must come at once, so
each verb imports what it needs when it runs.
"""
