"""The command `lockstep`, also `python -m lockstep`."""

import argparse
import os
import sys
from typing import NoReturn

from lockstep import __version__, predict, rebuild, serve, verify

COMMANDS = (
    ("predict", predict.__doc__, predict.EXAMPLE, predict.add_arguments, predict.run),
    ("serve", serve.__doc__, serve.EXAMPLE, serve.add_arguments, serve.run),
    ("verify", verify.__doc__, verify.EXAMPLE, verify.add_arguments, verify.run),
    ("rebuild", rebuild.__doc__, rebuild.EXAMPLE, rebuild.add_arguments, rebuild.run),
)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status.

    Args:
        arguments: the words after `lockstep`; those of the process unless given.
    """
    args = make_parser().parse_args(arguments)
    args.words = sys.argv[1:] if arguments is None else arguments
    try:
        status: int = args.run(args)
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lockstep",
        description="Classify images with an ONNX model, serve it over HTTP, or verify what proves it.",
        epilog="example: lockstep predict digit.png --model model.onnx",
    )
    parser.add_argument("--version", action="version", version=f"lockstep-onnx {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, doc, example, add_arguments, run in COMMANDS:
        command = subparsers.add_parser(
            name, help=doc, description=doc, epilog=example, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
