"""NeuReasoner: failure monitors over a few neurons, and tokens that trigger self-correction.

Some FFN units and attention heads of the middle layer fluctuate in their own way while a model
fails: at a wrong step (`intra`), between steps that stagnate (`inter`), on an easy question it
thinks too long about (`instance`). A small network per level reads the spectra of their
activations while the model decodes, and a token is forced that makes the model diagnose and
correct, or stop thinking. No code was published.

Equation -> function:

    1          contribution of a unit or head to a token   surgeon.attribution (it runs the model)
    sec. 2.1   the Mixture of Neurons, N*                   surgeon.attribution.persistent
    2, 3       shares and entropy of a spectrum             features.spectral_features
    Alg. 2     the spectrum at fixed probes, online         features.OnlineFeatures
    sec. 3.1   window of the last k steps, first K steps    features.trace_features, steps.StepRows
    sec. 2.2   failing spans against counterparts           pairs (Fig. 2 lower)
    App. E.3   detectors: labels, split, training           detectors.collect, train
    4-7        reconstruction and trigger training          surgeon.trigger (it writes data, trains)
    8          the forced trigger token, the finish text    surgeon.watch (it decodes)

Readings: places where the paper is silent or contradicts itself.

    R10  Eq. 2-3 take the spectrum on the window's own grid and the energy as the logarithm of the
         summed power; Alg. 2 takes it at fixed probes and the energy as log(V - U * U / L + eps).
         Detectors are trained on what they see online, the second. It leaves the low share of
         `instance` open: the lower half of the probes, what the high share leaves over.
    R11  Eq. 6 learns the injected wrong step too. Here it is masked (`mask_wrong`): on the built-in
         family, all else equal, tuned models answered .35 to .42 of the problems where they had
         learned their failing steps and .67 to .72 where they had not (recipes/trigger.yaml).
    R15  A head's activation is the norm of its part of the output projection's input
         (surgeon.channels).
    R17  Detectors are read at step ends only, where a trigger can follow the failing step (Eq. 5).
         The last step of the thinking has no separator: it is read when the closing token is about
         to come, and the separator is forced with the trigger. Where several tokens spell the
         closing tag, it is known only once they are written: there such a step is read to be drawn
         anew, and not to force a trigger.
    R21  Eq. 1's attribution is DePass's. By default it is the logit lens of each component's own
         output (`direct`), which needs one pass; `adjoint` and `softmax` are DePass. Against the
         softmax rule over all components the two are as close in rank (.714 and .705), at a
         sixteenth of the cost (benchmarks.attribution).
    R22  The paper's top-k is no number: a quarter of all components (`k`).
    R23  A channel is in N* of a level by the share of failing spans whose intersection has it, the
         32 most frequent ones (`channels`); sec. 2.1 intersects within one failure.
    R26  "Initial steps of multiple attempts" (sec. 2.1): the first step of each attempt that the
         judge names (`attempt_steps`); all steps of the stretch where it names none.
    R27  The "next critical step" of a reference (App. G): the first after the copied ones that
         holds a number, a relation or a formula, or the next one where none does.
    R28  Channels that persist in the counterpart as well are counted; `contrast=drop` leaves them
         out, which the paper doesn't.
    probes  The paper calls their number a small constant: 16, evenly over (0, pi], so that the
         upper half of them is the upper half of the spectrum as in the batch form.
    steps  A step is what a blank line ends, with more than white space in it; a token that holds
         text after the blank line belongs to the step it ends. Without a thinking block the whole
         response has steps.
    instance  Its features are those of the first K steps, so it is read once, at the end of the
         K-th; a response that has fewer is never read.
    labels  A token is failing when its own step lies in a failing span, wherever the rest of the
         window lies. With no span, a step of a labelled trace is fine.
    balance  Half of each training batch is failing, so a probability is that of a failure as
         frequent as its absence; the threshold makes the mean of both recalls largest at the step
         ends of the training problems, predicted by detectors that did not see them.
    levels  When several levels fire at one step end: instance, then intra, then inter.
    pause  After a firing one step end passes without another (`cooldown`), and a response has at
         most 8 firings (`cap`); the paper names neither.
"""
