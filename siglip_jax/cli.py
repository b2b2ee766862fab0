"""`siglip-jax <program> [flags]`: finds the program, parses its flags, turns user errors into one line and exit 2.

Nothing heavy is imported here, so that `siglip-jax --help` answers at once; each program is a module of `tools` with a
docstring, `define_flags(flag_values)` and `main(flags)`. A program of several commands has `COMMANDS`, a line about
each, instead; command `c` of program `p` is the module `tools.p.c`.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from siglip_jax import __version__
from siglip_jax.errors import Stopped, UserError

if TYPE_CHECKING:
    from absl.flags import FlagValues

CONFIG_FLAGS = ("config", "adapter", "relevance")  # flags whose value is a config file
PROGRAMS = {
    "demo": "the whole thread: catalogue, training, ranking table, report, SavedModel",
    "data": "a catalogue of items and images -> an ArrayRecord dataset and its audit",
    "audit": "what a dataset holds and what to look at before training, as a page",
    "models": "the published checkpoints; --verify compares one with its published figures",
    "convert": "weights between Hugging Face, big_vision and native formats",
    "train": "fine-tune on a dataset; resumes by itself from --workdir",
    "compile": "a config's step compiled for a TPU slice, on any machine: memory, FLOPs, fits or not",
    "embed": "a model and a dataset -> an embedding store (Parquet)",
    "blend": "models between a start and what was tuned from it: ranked, the best saved",
    "index": "an embedding store -> a search index, exact or ScaNN, with its measured recall",
    "search": "the nearest items of an item, a picture or a text, in the terminal",
    "serve": "a page and a JSON API over an index: visually similar items",
    "rank": "embedding stores, with or without logs -> ranking metrics with intervals, and the report",
    "simulate": "a dataset -> simulated sessions in the format of logs, to try `rank` on",
    "abtest": "logs of an online experiment -> lifts with intervals, sample ratio first; page, JSON, memo",
    "plan": "logs -> users and days that an online experiment needs to find a lift",
    "interleave": "two embedding stores -> lists mixed by team-draft, which `abtest --interleaved` reads out",
    "export": "a model -> SavedModel, checked without JAX; a store -> Vertex AI, Parquet, .npy, faiss",
    "bench": "time, memory and FLOPs of a part, beside its peers and its floor",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one program; returns its exit code: 0, 2 for bad input, 130 for Ctrl-C.

    Training that saved and stopped early gives 143 (SIGTERM), 130 (Ctrl-C) or 75 (its deadline).
    """
    arguments = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    program, arguments = (arguments or ["--help"])[0], arguments[1:]
    try:
        if program in ("-h", "--help", "help", "--version"):
            print(f"siglip-jax {__version__}" if program == "--version" else _usage(), flush=True)
            return 0
        return run(program, arguments)
    except UserError as error:
        print(f"siglip-jax {program}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"siglip-jax {program}: {stopped}", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print(f"siglip-jax {program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `siglip-jax ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a path that cannot be written, a full disk
        place = f"{str(error.filename)[:200]}: " if error.filename else ""
        print(f"siglip-jax {program}: {place}{error.strerror or error}; give another path", file=sys.stderr)
        return 2


def run(program: str, arguments: Sequence[str]) -> int:
    """Parses `arguments` with the program's own flags and runs it.

    Raises:
      UserError: an unknown program, flag or config field, or whatever the program refuses.
    """
    if program not in PROGRAMS:
        raise UserError(f"unknown program {program!r}; expected one of {', '.join(PROGRAMS)}")
    from absl import flags as absl_flags

    module = importlib.import_module(f"tools.{program}")
    if commands := getattr(module, "COMMANDS", None):
        command, arguments = (list(arguments) or ["--help"])[0], arguments[1:]
        if command in ("-h", "-help", "--help"):
            print(f"{(module.__doc__ or program).strip()}\n\ncommands:\n{_table(commands)}")
            return 0
        if command not in commands:
            raise UserError(f"unknown command {command!r}; expected one of {', '.join(commands)}")
        module, program = importlib.import_module(f"tools.{program}.{command}"), f"{program} {command}"
    # A FlagValues of its own: two programs' flags would collide in absl's global one.
    values = absl_flags.FlagValues()
    line = [f"siglip-jax {program}", *arguments]
    # ml_collections reads overrides such as --config.steps=10 from sys.argv, from the moment the flag is defined.
    shown, sys.argv = sys.argv, line
    try:
        return _parse_and_run(program, module, values)
    finally:
        sys.argv = shown


def _parse_and_run(program: str, module: ModuleType, values: FlagValues) -> int:
    from absl import flags as absl_flags

    command, arguments = sys.argv, sys.argv[1:]
    module.define_flags(values)
    if not {"-h", "-help", "--help"}.isdisjoint(arguments):  # before parsing, which demands the required flags
        print(f"{(module.__doc__ or program).strip()}\n\nflags:\n{_flag_help(values)}")
        return 0
    configs = [name for name in CONFIG_FLAGS if name in values]
    try:
        rest = values(command)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value (see --help)")
        values.validate_all_flags()
        _check_numbers(values)
        for name in configs:
            if (config := getattr(values, name)) is not None:
                config.lock()  # a file that is not there is only said at the first use
    except absl_flags.Error as error:
        raise UserError(
            f"{str(error).removeprefix('FATAL Flags parsing error: ')}; see siglip-jax {program} --help"
        ) from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config file is the user's own Python
        given = " or ".join(f"--{name}" for name in configs)
        raise UserError(f"{given}: {type(error).__name__}: {error}; see the fields in the config file") from error
    module.main(values)
    return 0


def _check_numbers(values: FlagValues) -> None:
    """Raises a UserError for NaN, which absl's bounds let through."""
    for name in values:
        if isinstance(given := values[name].value, float) and given != given:
            raise UserError(f"--{name}=nan: expected a number")


def one_line(message: str) -> str:
    """The message as one line of letters that print, so that logs and scripts can rely on it, and terminals too."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(message.split()))


def _with_underscores(word: str) -> str:
    """--dry-run as --dry_run, which is how absl knows it; values stay as they are."""
    name, sign, value = word.partition("=")
    return (
        name.replace("-", "_").replace("_", "-", 2) + sign + value
        if re.fullmatch(r"--[a-z]+(-[a-z]+)+", name)
        else word
    )


def _usage() -> str:
    return (
        f"usage: siglip-jax <program> [--flag=value ...]\n\n{_table(PROGRAMS)}\n\n"
        "siglip-jax <program> --help shows its flags."
    )


def _table(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())


def _flag_help(values: FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        if name == flag.short_name:
            continue
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
