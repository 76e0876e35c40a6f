"""`surgeon distill`: train a checkpoint on its own answers, without labels (Neuron-OPSD).

Four stages, each a function, each with its artifact in the directory, each continued after a kill:

    1  answer_pool, pool_sets   zero-shot answers and contribution sets    rollouts/, sets/
    2  choose, room             whom to train on; room for sharpening      selection.json
    3  find_contexts, gap       demonstrations for the teacher; is it      contexts.jsonl,
                                sharper than the student?                  diagnostics.json
    4  train                    on-policy distillation                     training/

plan.py        every input checked, before anything is computed
evidence.py    stages 1 to 3
objective.py   stage 4: rollouts, teacher and loss; LMSI, the baseline that comes with the loop
grpo.py        stage 4 of the baselines TTRL and Intuitor, through TRL
writing.py     the adapter or checkpoint, its card, what is shown
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon import lineage
from surgeon.distill.evidence import gather_evidence
from surgeon.distill.objective import train
from surgeon.distill.plan import CONTEXTS, EMAS, METHODS, TRACKERS, prepare
from surgeon.distill.writing import show, write

__all__ = ["CONTEXTS", "EMAS", "METHODS", "TRACKERS", "distill", "show"]


def distill(
    checkpoint: str,
    *,
    pool: str,
    out: str | Path,
    method: str = "nopsd",
    tuning: str = "lora",
    merge: bool = False,
    select: str | None = None,
    share: float = 0.2,
    band: Sequence[float] = (0.4, 0.6),
    context: str = "nearest",
    shots: int = 10,
    teacher_tokens: int = 0,
    sets: str = "main",
    activation: str = "gate",
    top_global: float = 5000.0,
    top_layer: float = 2000.0,
    chunk_tokens: int = 128,
    demonstration: str = "answer",
    loss: str = "mean",
    temperature: float = 0.7,
    top_p: float = 0.9,
    rollout_temperature: float = 1.0,
    rollout_top_p: float = 1.0,
    max_tokens: int = 4096,
    thinking: bool | None = None,
    answer: str = "auto",
    samples: int = 8,
    diagnose: int = 64,
    steps: int = 150,
    batch_size: int = 16,
    lr: float | None = None,
    warmup: float = 0.03,
    decay: str = "cosine",
    weight_decay: float = 0.0,
    clip: float = 1.0,
    ema_rate: float = 0.01,
    ema: str = "factors",
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: str = "all-linear",
    gradient_checkpointing: bool = False,
    micro_tokens: int = 16384,
    save_every: int = 25,
    parallel: str = "ddp",
    tracker: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Distil a checkpoint from its own answers to the unlabelled questions in `pool`.

    Writes a PEFT adapter to the directory `out` (`tuning="lora"`), or a checkpoint (`merge`, or
    `tuning="full"`). `select` is `bottom` (default), `top`, `band`, `all` or `random`; `context` is
    `nearest` or `random`. Other methods train on the whole pool: `lmsi` on the answers of the
    majority, `ttrl` and `intuitor` by a reward, with TRL. Answers in the pool are not read. Returns
    the content of `distill.json`. A run that was killed continues when it is called again; a
    finished one is not computed again. Runs under `torchrun` and `accelerate launch` too. Raises
    `BadInput` before anything is sampled.
    """
    plan = prepare(
        checkpoint, pool=pool, out=out, method=method, tuning=tuning, merge=merge, select=select,
        share=share, band=band, context=context, shots=shots, teacher_tokens=teacher_tokens,
        sets=sets, activation=activation, top_global=top_global, top_layer=top_layer,
        chunk_tokens=chunk_tokens, demonstration=demonstration, loss=loss,
        temperature=temperature, top_p=top_p, rollout_temperature=rollout_temperature,
        rollout_top_p=rollout_top_p, max_tokens=max_tokens, thinking=thinking, answer=answer,
        samples=samples, diagnose=diagnose, steps=steps, batch_size=batch_size, lr=lr,
        warmup=warmup, decay=decay, weight_decay=weight_decay, clip=clip, ema_rate=ema_rate,
        ema=ema, rank=rank, alpha=alpha, dropout=dropout, targets=targets,
        gradient_checkpointing=gradient_checkpointing, micro_tokens=micro_tokens,
        save_every=save_every, parallel=parallel, tracker=tracker, seed=seed, device=device,
        dtype=dtype,
    )  # fmt: skip
    out = Path(out)
    work = plan.begin(out)
    if work is None:
        return {**lineage.read_object(out / "distill.json"), "out": str(out), "already": True}
    evidence = gather_evidence(plan, work)
    trained = train(plan, evidence, work)
    result = write(plan, evidence, trained, work, out)
    return {**result, "out": str(out)}
