"""What sockets, sessions and the HTTP API promise."""

from tests.mutants import Mutant

LEFT = "tests/integration/test_left_meanwhile.py"

API: list[Mutant] = [
    Mutant(
        "K04",
        "A client that leaves during its submit has the job cancelled, if it wanted that.",
        "api/millstream_api/jobs/websocket.py",
        "                await self._commands.cancel_after_disconnect(self.who, submitted.job)",
        "                pass",
        f"{LEFT}::test_leaving_during_a_submit_is_leaving_after_it",
    ),
    Mutant(
        "K04b",
        "The job of a client that leaves during its submit runs on, unless it wanted it cancelled.",
        "api/millstream_api/jobs/websocket.py",
        "            if cancels_on_disconnect(request, submitted):\n                await self._commands.cancel_after_disconnect",
        "            if True:\n                await self._commands.cancel_after_disconnect",
        f"{LEFT}::test_leaving_during_a_submit_is_leaving_after_it",
    ),
    Mutant(
        "K04c",
        "Nothing is followed for a client that left during a submit whose key was known.",
        "api/millstream_api/jobs/websocket.py",
        "            self._hub.drop(follower)\n            if cancels_on_disconnect",
        "            if cancels_on_disconnect",
        f"{LEFT}::test_a_known_job_is_not_followed_for_a_client_that_left_during_its_submit",
    ),
    Mutant(
        "K05",
        "Nothing is followed for a submit that was refused.",
        "api/millstream_api/jobs/websocket.py",
        "        except BaseException:\n            self._unfollow(follower)",
        "        except BaseException:\n            pass",
        f"{LEFT}::test_what_is_refused_is_not_followed",
    ),
    Mutant(
        "K06",
        "Nothing is followed for an attach that was refused.",
        "api/millstream_api/jobs/websocket.py",
        "        except BaseException:\n            self._hub.drop(follower, forget=False)",
        "        except BaseException:\n            pass",
        f"{LEFT}::test_what_is_refused_is_not_followed",
    ),
    Mutant(
        "K10",
        "Nothing is followed for a client that left during its attach.",
        "api/millstream_api/jobs/websocket.py",
        "            self._hub.drop(follower)\n            return\n        if earlier",
        "            return\n        if earlier",
        f"{LEFT}::test_a_job_is_not_followed_for_a_client_that_left_during_its_attach",
    ),
    Mutant(
        "K11",
        "A plain frame whose client has left is not kept waiting for room in the queue.",
        "api/millstream_api/jobs/websocket.py",
        "if self._left or not self.session.waits_for_room",
        "if not self.session.waits_for_room",
        f"{LEFT}::test_a_plain_client_that_leaves_while_its_frame_waits_for_room_is_waited_for_no_longer",
    ),
    Mutant(
        "T01",
        "Nothing is followed for a stream that was refused.",
        "api/millstream_api/jobs/streams.py",
        "            self._hub.drop(self._follower, forget=False)\n            raise",
        "            raise",
        f"{LEFT}::test_what_is_refused_is_not_followed",
    ),
    Mutant(
        "T05",
        "Nothing is followed for a stream whose client left.",
        "api/millstream_api/jobs/streams.py",
        "            self._hub.drop(follower)\n            if left",
        "            if left",
        f"{LEFT}::test_a_job_is_followed_only_as_long_as_its_stream_is_read_or_its_end_waited_for",
    ),
    Mutant(
        "T05b",
        "Nothing is followed for a reader that had read the end before.",
        "api/millstream_api/jobs/http.py",
        "        await stream.close(left=False)\n        return Response(status_code=204)",
        "        return Response(status_code=204)",
        f"{LEFT}::test_a_job_is_followed_only_as_long_as_its_stream_is_read_or_its_end_waited_for",
    ),
]
