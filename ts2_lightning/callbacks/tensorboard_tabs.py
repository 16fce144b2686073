"""What TensorBoard shows beside curves: a row of its table of hyper-parameters, and a page of chosen charts."""

import os
import time
from collections.abc import Collection, Mapping
from typing import Any

import yaml
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger

HyperparameterValue = bool | int | float | str

FINAL = "final"
"""Beginning of the tags under which final values stand: before all but a few others in the alphabet, and TensorBoard's
table shows the first five columns by itself."""

Layout = dict[str, dict[str, list[Any]]]
"""Category -> title of a chart -> `["Multiline", tags]`, where a tag is a regular expression."""


# Hyper-parameters -----------------------------------------------------------------------------------------------------


def write_hyperparameters(logger: TensorBoardLogger, settings: Mapping[str, HyperparameterValue]) -> list[str]:
    """Begins the run's row of the tab HParams, and writes `hparams.yaml` beside the events.

    Which columns there are and which of them differ, TensorBoard finds out from the rows of all runs that it shows, as
    no run describes the table: one that did would decide the columns of all others.

    Args:
        logger: TensorBoard's logger, Lightning's own or one derived from it.
        settings: Hyper-parameters by their names.

    Returns:
        Names of those that the run began with other values of. TensorBoard keeps what was there first.
    """
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # no command but a training needs it

    collected = dict(logger.hparams)  # what the module has saved, and Lightning has handed to the logger
    file = os.path.join(logger.log_dir, logger.NAME_HPARAMS_FILE)
    changed = _differing({name: value for name, value in _read(file).items() if name not in collected}, settings)
    plain = {name: value for name, value in collected.items() if isinstance(value, HyperparameterValue)}
    # With an empty identity rows are called by the names of their runs.
    summary = hparams_pb({**plain, **settings}, trial_id="")
    logger.experiment._get_file_writer().add_summary(summary)
    logger.hparams = {**collected, **settings}
    save_hparams_to_yaml(file, logger.hparams)
    return changed


def _read(file: str) -> dict[str, Any]:
    """What an earlier start of the run has written; nothing if it was killed in between."""
    try:
        with open(file, encoding="utf-8") as stream:
            return yaml.safe_load(stream) or {}
    except (OSError, yaml.YAMLError):
        return {}


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names whose values differ; none without an earlier start."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)] if before else []


def write_final_values(logger: TensorBoardLogger, values: Mapping[str, float], step: int) -> None:
    """Ends the run's row: its final values, and that it has come to its end.

    Args:
        logger: TensorBoard's logger.
        values: Values by their names, which are shown under `final/NAME`.
        step: Optimizer steps done when they were measured.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    plugin_data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=ended))
    summary = Summary()
    summary.value.add(tag=metadata.SESSION_END_INFO_TAG, metadata=plugin_data, tensor=metadata.NULL_TENSOR)
    for name, value in values.items():
        summary.value.add(tag=f"{FINAL}/{name}", simple_value=value)
    logger.experiment._get_file_writer().add_summary(summary, step)


# A page of charts -----------------------------------------------------------------------------------------------------

_DISTRIBUTIONS = {
    "support size": "support_size",
    "support size: median and 90th percentile": "support_size_p(50|90)",
    "tail mass": "tail_mass",
    "entropy (nats)": "entropy",
    "probability of the gold token": "gold_probability",
    "gold token in the support": "gold_in_support",
    "share of tokens whose support is the gold token alone": "zero_gradient",
    "probabilities of the first three tokens": "top[123]",
}
_PARTS = "objective(/.+)?"
_OF_GROUPS = {
    "support size": "support_size",
    "tail mass": "tail_mass",
    "entropy (nats)": "entropy",
    "cross-entropy (nats)": "cross_entropy",
    "share of the tokens": "share",
}
_KINDS = {"position": "By position in the response", "token_class": "By kind of token"}


def diagnostics_layout(split_by: Collection[str] = (), has_tspd: bool = False) -> Layout:
    """The page Custom Scalars on which the diagnostics of the papers stand, training and validation in one chart.

    Args:
        split_by: Kinds of groups of tokens that are measured, see `DistributionMonitor`.
        has_tspd: Whether shares of tokens with TSPD are measured.

    Example:
        >>> layout = diagnostics_layout(["position"])
        >>> list(layout)
        ['Distributions', 'Objective', 'By position in the response']
        >>> layout["Distributions"]["tail mass"]
        ['Multiline', ['(train|val|val/[^/]+)/tail_mass$']]
    """
    distributions = {**_DISTRIBUTIONS, **({"share of tokens with TSPD": "tspd/.+"} if has_tspd else {})}
    objective = {
        **_charts({"objective and its parts": _PARTS}, "train"),
        **_charts({"objective and its parts, validation": _PARTS}, "val(/[^/]+)?"),
        **_charts({"cross-entropy (nats)": "cross_entropy"}),
    }
    layout = {"Distributions": _charts(distributions), "Objective": objective}
    for kind, title in _KINDS.items():
        if kind in split_by:
            charts: dict[str, list[Any]] = {}
            for stage, called in {"train": "", "val": ", validation"}.items():
                of_stage = {f"{name}{called}": f"{key}/.+" for name, key in _OF_GROUPS.items()}
                charts |= _charts(of_stage, f"{stage}_by_{kind}(/[^/]+)?")
            layout[title] = charts
    return layout


def _charts(keys: Mapping[str, str], stages: str = "(train|val|val/[^/]+)") -> dict[str, list[Any]]:
    return {title: ["Multiline", [f"{stages}/{key}$"]] for title, key in keys.items()}
