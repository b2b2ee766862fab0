"""Flags that several programs share, each defined once."""

from __future__ import annotations

import pathlib

import ml_collections
from absl import flags
from ml_collections import config_flags

from siglip_jax.errors import UserError, checked_on_error

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def define_config(
    values: flags.FlagValues, *, default: str | None, name: str = "config", text: str = "Config file"
) -> None:
    """--config file.py[:argument], with --config.field=value for every field."""
    config_flags.DEFINE_config_file(
        name,
        None if default is None else str(CONFIGS / default),
        f"{text}, with :argument where it takes one; --{name}.field=value changes a field.",
        flag_values=values,
    )


class _OnErrorParser(flags.ArgumentParser[str]):
    """ "error" or "skip", and the words that earlier versions had for them."""

    def parse(self, argument: str) -> str:
        try:
            return checked_on_error("value", argument)
        except UserError as error:
            raise ValueError(str(error).removeprefix("value=")) from error


def define_on_error(values: flags.FlagValues, default: str, text: str, *, name: str = "on_error") -> None:
    """--on_error: what bad input does, "error" or "skip"."""
    flags.DEFINE(_OnErrorParser(), name, default, text, flag_values=values)


def define_tokenizer(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "tokenizer",
        "",
        "SentencePiece .model file or tokenizer.json; trained on the training titles when absent.",
        flag_values=values,
    )


def config_of(values: flags.FlagValues) -> ml_collections.ConfigDict:
    """The config, with what other flags say of it."""
    if values.tokenizer:
        values.config.preprocessing.tokenizer = values.tokenizer
    return values.config


def define_dataset(values: flags.FlagValues) -> None:
    flags.DEFINE_string("dataset", None, "Folder written by siglip-jax data.", required=True, flag_values=values)


def define_distributed(values: flags.FlagValues) -> None:
    """One run of several processes; TPU pods and SLURM need none of these."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where several processes run.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "How many processes; with --coordinator.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0; with --coordinator.", flag_values=values)


def start_distributed(values: flags.FlagValues) -> None:
    """`jax.distributed` where flags or the environment ask for it; before anything asks for a device."""
    from siglip_jax.training.parallel import distributed

    distributed.initialize(
        coordinator=values.coordinator, num_processes=values.num_processes, process_id=values.process_id
    )


def define_features(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "features",
        [],
        "name=STORE: stored vectors in the place of images, from an embedding store or a file (.npz, .npy, .parquet). "
        "Several names are several inputs; a name given again joins stores by id, such as those of two splits.",
        flag_values=values,
    )


def features_of(values: flags.FlagValues) -> dict[str, list[str]]:
    """--features as {name: paths}."""
    paths: dict[str, list[str]] = {}
    for entry in values.features:
        name, sign, path = entry.partition("=")
        if not (name and sign and path):
            raise UserError(f"--features={entry}: expected name=STORE")
        paths.setdefault(name, []).append(path)
    return paths


def define_output(values: flags.FlagValues, text: str) -> None:
    flags.DEFINE_string("output", None, text, required=True, flag_values=values)


def define_model(values: flags.FlagValues, *, required: bool = True) -> None:
    flags.DEFINE_string(
        "model",
        None,
        "Preset, Hugging Face folder, big_vision .npz, workdir (its newest checkpoint; WORKDIR@best is the best, "
        "WORKDIR/checkpoints/500 that one), saved model; embed: .tflite, .onnx, SavedModel, "
        "pixels:16x12, colours:6x7x7, edges:8x6x8.",
        required=required,
        flag_values=values,
    )


def define_layout(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "layout",
        "catalog",
        ["catalog", "fashion"],
        "fashion: the public Fashion Product Images layout, styles.csv and images/.",
        flag_values=values,
    )


def define_max_left_out(values: flags.FlagValues) -> None:
    flags.DEFINE_float(
        "max_left_out",
        0.01,
        "Share of the rows that may be left out; with more the build stops.",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )


def define_scann(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "scann",
        "ah",
        ["none", "brute_force", "ah", "tree"],
        "ScaNN's kind of index for the column beside exact search; none leaves the column out.",
        flag_values=values,
    )


def define_allow_low_recall(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "allow_low_recall", False, "Search an index though it finds less than its target, or than 0.98.",
        flag_values=values,
    )  # fmt: skip


def scann_options(mode: str) -> dict[str, str] | None:
    return None if mode == "none" else {"mode": mode}


def pairs(entries: list[str], *, flag: str) -> list[tuple[str, str]]:
    """["trained=pca:128", ...] -> [("trained", "pca:128"), ...]; a UserError where an entry is not name=value."""
    found = []
    for entry in entries:
        name, sign, value = entry.rpartition("=")
        if not (name and sign and value):
            raise UserError(f"--{flag}={entry}: expected name=value")
        found.append((name, value))
    return found


def named_paths(entries: list[str], *, flag: str, expected: str = "name=folder") -> dict[str, str]:
    """["trained=runs/a", ...] -> {"trained": "runs/a"}; a UserError where an entry is not name=path or repeats."""
    named: dict[str, str] = {}
    for entry in entries:
        name, sign, path = entry.partition("=")
        if not (name and sign and path) or name in named:
            raise UserError(f"--{flag}={entry}: expected {expected}, each name once")
        named[name] = path
    return named


def filters(entries: list[str], *, what: str) -> dict[str, list[str]]:
    """["colour=red", "colour=blue"] -> {"colour": ["red", "blue"]}; a UserError where an entry is not name=value."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not (name and sign):
            raise UserError(f"{what}={entry}: expected attribute=value, such as type=dress")
        found.setdefault(name, []).append(value)
    return found


def define_folders(values: flags.FlagValues) -> None:
    """--shard_size and --report: of folders that libraries of others read."""
    flags.DEFINE_string(
        "shard_size",
        "5GB",
        "Most bytes of one safetensors file of a Hugging Face folder, such as 500MB; beyond it there are several.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "report", None, "The .json beside a report of siglip-jax rank, for the folder's model card.", flag_values=values
    )


def read_ids(path: str, *, flag: str) -> list[str]:
    """Different ids of a file, one a line, empty lines left out; UserError where there is none."""
    from etils import epath

    from siglip_jax.files import is_regular

    if not is_regular(epath.Path(path)):
        raise UserError(f"--{flag}={path}: no such file; expected one id a line")
    try:
        lines = epath.Path(path).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--{flag}={path}: not UTF-8 (byte {error.start}); expected one id a line") from None
    if ids := list(dict.fromkeys(id_ for line in lines if (id_ := line.removesuffix("\r")))):
        return ids
    raise UserError(f"--{flag}={path}: empty; expected one id a line")
