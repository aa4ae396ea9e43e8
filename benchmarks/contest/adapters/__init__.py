"""One module a system. Imported by the driver, too, so each imports its system inside its functions only.

IMPORT                      the statement whose time is "import"
ENVIRONMENT                 variables of its processes, before it is imported; offline, quiet
COUNTED                     how ``count`` counts, in words
start(directory)            begin a run in a directory; returns (one, many): one(key, value, step), many(values, step)
finish()                    end the run the way that its users do
count(directory)            points of "loss" that its own reader finds there; in another process, the logging one ended
"""
