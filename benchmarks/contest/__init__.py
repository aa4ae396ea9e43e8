"""The parts of ``benchmarks/peers.py``, which measures other experiment trackers beside mlferry.

``table`` says who takes part, with which pinned packages; ``environments`` installs each into a virtual environment of its
own; ``adapters`` has one module a system: how it logs, and how its own reader counts what is there; ``worker`` runs one
phase in a fresh process of such an environment and answers in JSON; ``trials`` starts the workers, kills them and counts.
"""
