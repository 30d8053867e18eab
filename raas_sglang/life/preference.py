"""`--preferred-sampling-params`: what a request that names no policy or budget gets instead.

SGLang puts them under a request's own parameters as a whole, so on one route ``custom_params`` of
the request hide those of the server, and on another a null does. Ours go by key, on all routes: the
request's, else the preferred, else the server's.
"""

import json
from typing import TYPE_CHECKING, Any

from sglang.srt.arg_groups.model_override_base import model_config_of
from sglang.srt.sampling.sampling_params import SamplingParams

from raas_sglang.config import RaasConfig
from raas_sglang.exchange import CHOICE_KEY
from raas_sglang.life.options import is_ours, names_choice, parse_options

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


def with_preference(params: dict[str, Any], preferred: dict[str, Any] | None) -> dict[str, Any]:
    """Returns a request's sampling parameters with the preferred policy and budget in them.

    Args:
        params: As the client sent them.
        preferred: The server's preferred sampling parameters.
    """
    custom = (preferred or {}).get(CHOICE_KEY) or {}
    ours = {key: custom[key] for key in custom if is_ours(key)}
    asked = {**(preferred or {}), **params}.get(CHOICE_KEY) or {}
    if not ours or not isinstance(asked, dict):
        return params
    return {**params, CHOICE_KEY: {**ours, **asked}}


def require_preference(server_args: "ServerArgs", config: RaasConfig | None) -> None:
    """Checks that every request could be served with what is preferred.

    Args:
        server_args: SGLang's.
        config: Ours in them; None without a policy.

    Raises:
        ValueError: one could not.
    """
    preferred = server_args.preferred_sampling_params
    if not preferred:
        return
    try:
        params = json.loads(preferred) if isinstance(preferred, str) else preferred
        if config is None and not isinstance(params, dict):
            return  # nothing of ours is in it
        custom = params.get(CHOICE_KEY)
        if config is not None or (custom is not None and names_choice(custom)):
            context_len = model_config_of(server_args).context_len
            beam_width = params.get("beam_width")
            parse_options(custom, config, context_len, max_new_tokens=None, beam_width=beam_width)
        if config is not None:
            SamplingParams(**params)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--preferred-sampling-params must be what every request may ask for: {error}"
        ) from error
