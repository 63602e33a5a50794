"""`easylm serve`: a server for a trained model. Heavy modules are imported only when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from easylm_jax.cli import arguments as kinds
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.decode.server import Served


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm serve`."""
    parser.add_argument("model", type=kinds.NAME, metavar="MODEL", help="as `easylm generate` takes it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=kinds.PORT, default=8000, help="port; 0 chooses a free one (default: 8000)")
    parser.add_argument("--key", metavar="NAME", help="the environment variable with the key that clients must send")
    parser.add_argument("--template", metavar="NAME", help="chat template (default: the model's own)")
    parser.add_argument("--tokenizer", type=kinds.NAME, metavar="SPEC", help="sp:FILE or hf:FOLDER (default: its own)")
    parser.add_argument("--name", help="what clients call the model (default: the last part of MODEL)")
    parser.add_argument("--slots", type=kinds.COUNT, default=32, help="responses decoded at once (default: 32)")
    parser.add_argument("--waiting", type=kinds.COUNT, default=1024, help="requests that may wait (default: 1024)")


def main(arguments: argparse.Namespace) -> int:
    """`easylm serve`: serves until SIGTERM or Ctrl-C; returns 0 once what it answers is answered."""
    try:
        import uvicorn

        from easylm_jax.decode import server
    except ImportError as error:
        raise UserError(f"easylm serve needs the package {error.name}; pip install 'easylm_jax[serve]'") from None
    key = None
    if arguments.key is not None:
        key = os.environ.get(arguments.key)
        if not key:
            raise UserError(f"the environment variable {arguments.key}, which should hold the key, is not set")
    with _listening(arguments.host, arguments.port) as listener:
        served = _served(arguments, key)
        config = uvicorn.Config(server.application(served), log_level="warning", access_log=False, lifespan="off")
        host, port = listener.getsockname()[:2]
        print(f"serving {served.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
        _Server(config).run(sockets=[listener])
        served.stream.close()
    print("easylm serve: ended; every request was answered", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _listening(host: str, port: int) -> Any:
    """A listening socket; taken before the model is loaded, so that a port in use is said at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot listen at {host}: {getattr(error, 'strerror', None) or error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port") from None
        yield listener


def _served(arguments: argparse.Namespace, key: str | None) -> Served:
    import functools

    from easylm_jax.checkpoint.load import load
    from easylm_jax.config import chat_templates
    from easylm_jax.data import templates
    from easylm_jax.data.tokenizer import restrict_vocab
    from easylm_jax.decode import Engine
    from easylm_jax.decode.generator import check_generative
    from easylm_jax.decode.server import Served
    from easylm_jax.decode.stream import Stream

    if arguments.template is not None:
        chat_templates.get_template(arguments.template)
    source = load(arguments.model, tokenizer=arguments.tokenizer)
    check_generative("serve", source.decoder.config)
    template = arguments.template or source.template
    mesh = source.mesh if source.mesh.size > 1 else None
    engine = Engine(restrict_vocab(source.decoder, source.tokenizer), slots=arguments.slots, mesh=mesh)
    stream = Stream(
        engine, source.params, slots=arguments.slots, eos_ids=templates.end_tokens(template, source.tokenizer),
        detokenize=functools.partial(source.tokenizer.decode, skip_special=True), most=arguments.waiting,
    )  # fmt: skip
    name = arguments.name or arguments.model.rstrip("/").rpartition("/")[2]
    return Served(name, stream, source.tokenizer, template, source.add_bos, key)


class _Server:
    """uvicorn's server, which ends with the requests that it answers on SIGTERM and Ctrl-C, and then returns.

    uvicorn itself sends itself the signal again when it has ended, so that the exit status would be that of the signal.
    """

    def __init__(self, config: Any):
        import uvicorn

        class Quiet(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Any:
                before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
                try:
                    yield
                finally:
                    for number, handler in before.items():
                        signal.signal(number, handler)

        self._server = Quiet(config)

    def run(self, sockets: list[socket.socket]) -> None:
        """Serves until a signal comes."""
        self._server.run(sockets=sockets)
