"""Who writes the answers: the decoder here, vLLM in this process, or a server of the same weights.

All of them are samplers (`traces.Sampler`): token ids in, token ids out, an answer's random numbers
from the run's seed and the answer's own key. The trace files are the same ones, whoever wrote them;
they are filled before a model is loaded here, and what they hold isn't asked for again.

completions.py   what is asked of a server, and what it says
servers.py       a candidate behind a server, as a sampler
started.py       servers that are started for one candidate
in_process.py    vLLM in this process, its weights exchanged in place
extension.py     what vLLM's workers do beyond vLLM
agreement.py     whether an engine has a candidate's weights
filling.py       trace files, filled candidate by candidate
"""

from surgeon.engines.agreement import Agreement, agreement, agreement_required
from surgeon.engines.completions import Completions, Continuation
from surgeon.engines.filling import FILE, Destination, Engine, fill, opened, require_engine
from surgeon.engines.in_process import VllmEngine
from surgeon.engines.servers import Counts, ServerSampler, seed_of
from surgeon.engines.started import asked

__all__ = [
    "FILE",
    "Agreement",
    "Completions",
    "Continuation",
    "Counts",
    "Destination",
    "Engine",
    "ServerSampler",
    "VllmEngine",
    "agreement",
    "agreement_required",
    "asked",
    "fill",
    "opened",
    "require_engine",
    "seed_of",
]
