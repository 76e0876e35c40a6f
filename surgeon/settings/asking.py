"""How a model behind an endpoint is asked to judge or to write: a group that stages share."""

from typing import Annotated, Literal

from surgeon.settings.schema import UNRECORDED, Amount, Count, File, Positive, settings


@settings
class EndpointSettings:
    """How a model behind an endpoint is asked."""

    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the form of a reply is asked for: the server enforces it (json_schema), the server
    enforces any JSON (json_object), or the words of the request ask alone (none)."""
    prompt_file: Annotated[File | None, UNRECORDED] = None
    """Other wording for the endpoint: YAML in the form of surgeon/judges/wording.yaml."""
    parallel: Annotated[Count, UNRECORDED] = 8
    """Requests at a time."""
    timeout: Annotated[Positive, UNRECORDED] = 300.0
    """Seconds for one attempt at a reply."""
    attempts: Annotated[Count, UNRECORDED] = 6
    """Attempts at a reply, with growing pauses between them."""
    price_in: Annotated[Amount | None, UNRECORDED] = None
    """Money per million tokens in, for the estimate."""
    price_out: Annotated[Amount | None, UNRECORDED] = None
    """Money per million tokens out."""

    def money(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost, in the currency of the prices; None where they aren't known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
