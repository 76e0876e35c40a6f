"""Workers: processes on the devices of this machine, or actors of a Ray cluster, for any verb.

A verb says which *units* of which *groups* it lacks (answers of a candidate, say) and gives a
*job*: a function of a bench and an order that yields what it makes, unit by unit. The crew hands
out orders, so that a worker keeps the model that it has loaded, and yields what comes back, in the
driver, which alone writes files. A worker that dies loses what it had in flight; others make it.

roster.py    the settings, read and checked: which workers
bench.py     a worker's own place: its device, and the one model that it holds
crew.py      the driver: who does what next, and what is lost with a worker
pipes.py     workers as processes of this machine
cluster.py   workers as actors of a Ray cluster
sharing.py   answers to prompts by workers: what several verbs want of them
"""

from surgeon.workers.bench import Bench
from surgeon.workers.crew import Crew, Result
from surgeon.workers.roster import Roster, roster
from surgeon.workers.sharing import answered

__all__ = ["Bench", "Crew", "Result", "Roster", "answered", "roster"]
