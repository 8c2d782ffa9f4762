"""A server extension of the tests: looks into the server, and makes its event loop stall.

``GET /api/probe/rooms`` gives the collaboration rooms that exist: id → bytes of its document's whole state.
``POST /api/probe/stall/5`` blocks the event loop for 5 s. ``POST /api/probe/stall-before-grant/5`` does so once, when
the next grant is about to be asked.
"""

from __future__ import annotations

import time
from typing import Any

from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado.web import authenticated

from output_keeper.server.follower import Follower


class Rooms(APIHandler):
    @authenticated
    def get(self) -> None:
        (app,) = self.settings["probed_server"].extension_manager.extension_apps["jupyter_server_ydoc"]
        rooms = app.ywebsocket_server.rooms
        self.finish({room_id: len(room.ydoc.get_update()) for room_id, room in rooms.items()})


class Stall(APIHandler):
    @authenticated
    def post(self, seconds: str) -> None:
        time.sleep(float(seconds))
        self.finish({})


class StallBeforeGrant(APIHandler):
    @authenticated
    def post(self, seconds: str) -> None:
        original = Follower.grant

        def grant(follower: Follower, msg_id: str) -> None:
            Follower.grant = original  # type: ignore[method-assign]
            time.sleep(float(seconds))
            original(follower, msg_id)

        Follower.grant = grant  # type: ignore[method-assign]
        self.finish({})


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "server_probe"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.web_app.settings["probed_server"] = serverapp
    base = url_path_join(serverapp.base_url, "api", "probe")
    serverapp.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "rooms"), Rooms),
            (url_path_join(base, r"stall/([\d.]+)"), Stall),
            (url_path_join(base, r"stall-before-grant/([\d.]+)"), StallBeforeGrant),
        ],
    )
