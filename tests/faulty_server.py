"""A server of chat completions that fails in the ways that real ones do, as its requests ask for."""

import contextlib
import http.server
import json
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.body, text = body, body["messages"][-1]["content"]
        name, *faults = text.split() or [""]
        if self.server.whole:
            name, faults = json.dumps(body, sort_keys=True), self.server.faults(body)
        with self.server.lock:
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
            self.server.asked.append((name, self.headers.get("Authorization"), body))
            attempt = sum(asked[0] == name for asked in self.server.asked)
        try:
            fault = faults[attempt - 1] if attempt <= len(faults) else None
            after = self.server.forbidden_after
            fault = "forbidden" if after is not None and len(self.server.asked) > after else fault
            getattr(self, f"fault_{fault}", self.answer)(text)
        finally:
            with self.server.lock:
                self.server.running -= 1

    def send(self, status, content, length=None, **headers):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for key, value in {"Content-Length": length or len(content), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(content)

    def answer(self, text):
        reply = self.server.reply(self.body if self.server.whole else text)
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": len(reply.split())}
        choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        self.send(200, json.dumps({"choices": [choice], "usage": usage}).encode())

    def fault_slow(self, text):
        time.sleep(self.server.slow)
        self.close_connection = True

    def fault_drip(self, text):  # a byte at a time, for ever
        self.send(200, b"", length=1000)
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(self.server.slow / 20)
        self.close_connection = True

    def fault_busy(self, text):
        self.send(429, b'{"error": {"message": "slow down"}}', Retry_After="0.01")

    def fault_broken(self, text):
        self.send(503, b"<html>no</html>")

    def fault_garbage(self, text):
        self.send(200, b'{"choices": [{"text": 3}]}')

    def fault_prose(self, text):
        self.send(200, b"I am sorry")

    def fault_cut(self, text):
        self.send(200, b'{"choices": [{"mess', length=4000)
        self.close_connection = True

    def fault_hangup(self, text):
        self.close_connection = True
        self.connection.close()

    def fault_bad(self, text):
        self.send(400, json.dumps({"error": {"message": f"no, {self.headers.get('Authorization')}"}}).encode())

    def fault_forbidden(self, text):
        self.send(401, json.dumps({"error": {"message": f"bad key {self.headers.get('Authorization')}"}}).encode())


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # a client that has gone
        pass


@contextlib.contextmanager
def faulty_server(reply=lambda text: f"echo {text.split()[0]}", slow=1.0, whole=False, faults=lambda body: ()):
    """A running server; `asked` lists (name, authorization, body) of every request, `most` is how many ran at once.

    It replies to the last text, or with `whole` to the body, with those faults that `faults` names for it, by attempt.
    Once it was asked `forbidden_after` times, it refuses the key.
    """
    server = _Server(("127.0.0.1", 0), Handler)
    server.lock, server.asked, server.running, server.most = threading.Lock(), [], 0, 0
    server.reply, server.slow, server.whole, server.forbidden_after = reply, slow, whole, None
    server.faults = faults
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
