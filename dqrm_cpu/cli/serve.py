"""`dqrm-cpu serve`: answers requests over HTTP with an exported model."""

import argparse
import importlib.util
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path

from dqrm_cpu.cli.export import EXPORTED_NAME
from dqrm_cpu.cli.parser import Subparsers, UsageError, add_products_option, whole_number

_ABOUT = "Answers requests over HTTP with an exported model: rows as JSON, or the Open Inference Protocol (KServe v2)."

_EXAMPLES = """examples:
  dqrm-cpu serve runs/a                             its model.safetensors, which is exported first if need be
  dqrm-cpu serve model.safetensors --host 0.0.0.0 --port 80 --workers 8
  curl localhost:8000/predict -d '{"rows": [{"site": "a.com", "hour": 7}]}'

A new file under the name of the model takes over without a lost request: docs/serving.md."""


def add_parser(subparsers: Subparsers) -> None:
    """Adds the command's options."""
    parser = subparsers.add_parser(
        "serve", help="answer requests with an exported model", description=_ABOUT, epilog=_EXAMPLES
    )
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="a file that dqrm-cpu export wrote, or the folder of a run"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=whole_number(1, 65_535), default=8000, help="default: 8000")
    parser.add_argument("--name", default="model", help="what requests call the model\ndefault: model")
    parser.add_argument("--workers", metavar="N", type=whole_number(1), default=1, help="processes\ndefault: 1")
    add_products_option(parser, "products of layers")
    parser.add_argument(
        "--max-rows", metavar="N", type=whole_number(1), default=4096, help="of a request\ndefault: 4096"
    )
    parser.add_argument("--max-body", metavar="MB", type=whole_number(1), default=8, help="of a request\ndefault: 8")
    parser.add_argument(
        "--max-connections", metavar="N", type=whole_number(1), default=1024, help="of a process\ndefault: 1024"
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=whole_number(1),
        default=5,
        help="for a body to come, and to be scored\ndefault: 5",
    )
    parser.add_argument(
        "--grace",
        metavar="S",
        type=whole_number(1),
        default=10,
        help="seconds for requests under way at the end\ndefault: 10",
    )
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        type=Path,
        help="the same model as ONNX: the page can then score in the browser, which sends no row anywhere",
    )
    parser.add_argument(
        "--web-runtime",
        metavar="DIR",
        type=Path,
        help="node_modules/onnxruntime-web/dist, what browsers score with; goes with --onnx",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    if any(importlib.util.find_spec(name) is None for name in ("uvicorn", "httptools", "prometheus_client")):
        raise UsageError("the server needs more packages: pip install 'dqrm-cpu[serve]'")
    if not args.name or "/" in args.name:
        raise UsageError(f"--name {args.name!r}: a word without a slash, as it stands in the address")
    if (args.onnx is None) != (args.web_runtime is None):
        raise UsageError("--onnx and --web-runtime go together: a browser needs the model and what reads it")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy: a process has one core, others have theirs
    from dqrm_cpu.base.kernel_cache import choose_cache_folder, compiling_note
    from dqrm_cpu.server.app import ServerSettings
    from dqrm_cpu.server.browser_files import BrowserFiles
    from dqrm_cpu.server.run import serve
    from dqrm_cpu.serving import Model
    from dqrm_cpu.serving.fused import can_compile

    if args.model.is_dir():  # before an export, which takes long; a file is looked at first
        _require_address(args.host, args.port)
    path = _exported(args.model) if args.model.is_dir() else args.model
    choose_cache_folder()
    if can_compile() and (note := compiling_note("numba", "answer", "packed_network")):
        print(note, file=sys.stderr)
    Model.open(path, products=args.products)  # whatever is wrong is said before a port is taken
    _require_address(args.host, args.port)
    if args.onnx is not None:
        BrowserFiles(path, args.onnx, args.web_runtime)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    settings = ServerSettings(
        model=path,
        name=args.name,
        most_body_bytes=args.max_body << 20,
        most_rows=args.max_rows,
        timeout_s=float(args.timeout),
        products=args.products,
        onnx=args.onnx,
        web_runtime=args.web_runtime,
    )
    print(f"serving {path} at http://{args.host}:{args.port}/ (Ctrl-C ends it)", file=sys.stderr)
    serve(settings, args.host, args.port, args.workers, args.max_connections, args.grace)
    return 0


def _require_address(host: str, port: int) -> None:
    """Raises where nobody could listen: before a model is exported or read."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no name of a host"
        raise UsageError(
            f"--host {host} --port {port}: {why}; give an address of this machine and a free port"
        ) from None


def _exported(run_dir: Path) -> Path:
    """Returns the exported file in a run's folder; it is written where there is none yet."""
    path = run_dir / EXPORTED_NAME
    if not path.exists():
        from dqrm_cpu.predict.exporting import ExportRequest, export
        from dqrm_cpu.train.working import working_on

        print(f"exporting {run_dir} to {path}", file=sys.stderr)
        show_work = partial(working_on, sys.stderr)
        export(ExportRequest(run_dir, path, note=lambda text: print(text, file=sys.stderr), show_work=show_work))
    return path
