"""A kernel of a hundred lines: pyzmq, no Jupyter library, no welcome, no subshells, a language of its own.

Each line of code is a command: ``say WORDS`` prints, ``wait FILE`` waits until the file exists, ``fail`` is an error.
With ``--stubborn`` it ignores SIGINT, SIGTERM and shutdown requests, as a kernel that hangs does.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import sys
import threading
import time
import uuid
from datetime import datetime, timezone
from typing import Any

import zmq

DELIMITER = b"<IDS|MSG>"
INFO = {
    "status": "ok",
    "protocol_version": "5.3",
    "implementation": "tiny",
    "language_info": {"name": "tiny", "version": "1", "mimetype": "text/plain", "file_extension": ".tiny"},
}


class TinyKernel:
    def __init__(self, connection_file: str, stubborn: bool) -> None:
        with open(connection_file) as file:
            self.info: dict[str, Any] = json.load(file)
        self.stubborn = stubborn
        self.session = uuid.uuid4().hex
        self.count = 0
        context = zmq.Context()
        self.shell, self.control, self.stdin = (
            self.bind(context, zmq.ROUTER, channel) for channel in ("shell", "control", "stdin")
        )
        self.heartbeat, self.iopub = self.bind(context, zmq.REP, "hb"), self.bind(context, zmq.PUB, "iopub")
        threading.Thread(target=self.echo, daemon=True).start()

    def bind(self, context: zmq.Context, kind: int, channel: str) -> zmq.Socket:
        socket = context.socket(kind)
        separator = ":" if self.info["transport"] == "tcp" else "-"
        socket.bind(f"{self.info['transport']}://{self.info['ip']}{separator}{self.info[f'{channel}_port']}")
        return socket

    def echo(self) -> None:
        while True:
            self.heartbeat.send(self.heartbeat.recv())

    def send(self, socket: zmq.Socket, msg_type: str, content: dict, parent: dict, idents: list[bytes]) -> None:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": msg_type, "session": self.session}
        header |= {"date": datetime.now(timezone.utc).isoformat(), "username": "tiny", "version": "5.3"}
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        seal = hmac.new(self.info["key"].encode(), b"".join(parts), hashlib.sha256).hexdigest().encode()
        socket.send_multipart([*idents, DELIMITER, seal, *parts])

    def publish(self, msg_type: str, content: dict, parent: dict) -> None:
        self.send(self.iopub, msg_type, content, parent, [msg_type.encode()])

    def run(self) -> None:
        poller = zmq.Poller()
        for socket in (self.shell, self.control):
            poller.register(socket, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                self.answer(socket)

    def answer(self, socket: zmq.Socket) -> None:
        frames = socket.recv_multipart()
        at = frames.index(DELIMITER)
        idents, request, content = frames[:at], json.loads(frames[at + 2]), json.loads(frames[at + 5])
        kind = request["msg_type"].removesuffix("_request")
        self.publish("status", {"execution_state": "busy"}, request)
        reply: dict[str, Any] = {"kernel_info": INFO, "execute": {}, "shutdown": content}.get(kind, {"status": "ok"})
        if kind == "execute":
            reply = self.execute(content["code"], request)
        if kind != "shutdown" or not self.stubborn:
            self.send(socket, f"{kind}_reply", reply, request, idents)
        self.publish("status", {"execution_state": "idle"}, request)
        if kind == "shutdown" and not self.stubborn:
            time.sleep(0.1)  # the reply's way out
            sys.exit(0)

    def execute(self, code: str, request: dict) -> dict[str, Any]:
        self.count += 1
        self.publish("execute_input", {"code": code, "execution_count": self.count}, request)
        try:
            for line in code.splitlines():
                self.command(line, request)
        except (KeyboardInterrupt, ValueError) as error:
            problem = {"ename": type(error).__name__, "evalue": str(error), "traceback": [repr(error)]}
            self.publish("error", problem, request)
            return {"status": "error", "execution_count": self.count, **problem}
        return {"status": "ok", "execution_count": self.count, "user_expressions": {}, "payload": []}

    def command(self, line: str, request: dict) -> None:
        word, _, rest = line.partition(" ")
        if word == "say":
            self.publish("stream", {"name": "stdout", "text": f"{rest}\n"}, request)
        elif word == "wait":
            while not os.path.exists(rest):
                time.sleep(0.02)
        else:
            raise ValueError(line)


if __name__ == "__main__":
    hard_of_hearing = "--stubborn" in sys.argv
    for number in (signal.SIGINT, signal.SIGTERM) if hard_of_hearing else ():
        signal.signal(number, signal.SIG_IGN)
    TinyKernel(sys.argv[1], hard_of_hearing).run()
