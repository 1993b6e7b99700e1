"""Changes to the connection: requests, frames, their bounds."""

from tests.mutants import Mutant

HTTP1 = "api/millstream_api/wire/http1.py"
FRAMES = "api/millstream_api/wire/frames.py"
CONNECTION = "api/millstream_api/wire/http_connection.py"
EXCHANGE = "api/millstream_api/wire/exchange.py"
WEBSOCKET = "api/millstream_api/wire/websocket.py"
POPULATION = "api/millstream_api/wire/population.py"
ONE, FRAMING = "tests/unit/test_http1.py", "tests/integration/test_framing.py"
LIMITS, WIRED = "tests/integration/test_connection_limits.py", "tests/integration/test_websocket_wire.py"
CUTS = f"{ONE}::test_any_bytes_in_any_packets_come_to_the_same"
REFUSED = f"{ONE}::test_what_might_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read"
POPULATED = "tests/unit/test_population.py"

WIRE = [
    Mutant(
        "Z01", "the end of a head is found however it is cut",
        HTTP1, "self._searched = max(0, len(data) - 3)\n            return None", "self._searched = len(data)\n            return None",
        CUTS,
    ),
    Mutant("Z02", "a request has one Host", HTTP1, "len(hosts) > 1 or ", "", REFUSED),
    Mutant(
        "Z03", "a request with two lengths is refused",
        HTTP1, 'raise _malformed("it has both Content-Length and Transfer-Encoding")', "pass", REFUSED,
    ),
    Mutant("Z04", "a folded header is refused", HTTP1, "[^\\x00-\\x08\\x0a-\\x1f\\x7f]*+\\r\\n)*+\" % TOKEN)  # any", "[^\\x00-\\x08\\x0a-\\x1f\\x7f]*+\\r\\n[ ]*+)*+\" % TOKEN)  # any", REFUSED),
    Mutant(
        "Z05", "trailers are bounded", HTTP1,
        "if (end if end >= 0 else len(data)) > self._head_bytes:\n                raise", "if False:\n                raise",
        f"{ONE}::test_trailers_are_bounded_as_a_head_is",
    ),
    Mutant(
        "Z06", "an offer of another protocol changes nothing about a body",
        HTTP1, "length = _length(framing, old=old)", 'length = 0 if b"upgrade" in connection else _length(framing, old=old)',
        f"{FRAMING}::test_a_request_that_offers_an_upgrade_keeps_its_body",
    ),
    Mutant(
        "Z07", "a whole body is handed on though its client has gone",
        EXCHANGE, "while not self._complete:\n            if", "while not self._complete and not connection.eof:\n            if",
        f"{FRAMING}::test_a_put_whose_client_closes_at_once_is_carried_out",
    ),
    Mutant(
        "Z08", "what came in full before a connection was lost is carried out",
        EXCHANGE, "if connection.lost:\n                self.end()", "if connection.lost:\n                pass",
        f"{FRAMING}::test_requests_of_a_pipeline_are_all_carried_out_when_their_client_closes",
    ),
    Mutant(
        "Z09", "a client that half-closes is answered", CONNECTION, "return self.plain_tcp\n", "return False\n",
        f"{FRAMING}::test_a_client_that_half_closes_is_answered",
    ),
    Mutant(
        "Z10", "a head has a time limit, however it drips", CONNECTION, "and not self._in_head:", "and True:",
        f"{LIMITS}::test_a_head_that_drips_has_the_time_of_a_head_and_no_more",
    ),
    Mutant(
        "Z11", "a body that makes no progress is not waited for", CONNECTION,
        "self.deadline = monotonic() + self.limits.body_s", "pass",
        f"{LIMITS}::test_a_client_that_does_not_go_on_is_told_and_closed",
    ),
    Mutant(
        "Z12", "an upload that nobody wants leaves its connection in order", CONNECTION,
        "if not reader.body_complete and self._skip_body():", "if not reader.body_complete and False:",
        "tests/integration/test_files_put.py::test_a_refused_upload_leaves_its_connection_in_order",
    ),
    Mutant(
        "Z13", "a client that sends on after a refusal hears the answer", CONNECTION,
        "self.transport.write_eof()\n", "self.transport.close()\n        return\n",
        f"{FRAMING}::test_who_sends_on_after_a_refusal_hears_the_answer",
    ),
    Mutant(
        "Z14", "of many pings the last is answered", WEBSOCKET, "self._pong = message.data",
        "self._connection.write(frame(Opcode.PONG, message.data))",
        f"{WIRED}::test_of_many_pings_the_last_is_answered_and_none_while_the_client_reads_nothing",
    ),
    Mutant(
        "Z15", "a listener that pauses is told nothing", WEBSOCKET, "while not self._paused and", "while",
        f"{WIRED}::test_a_listener_that_pauses_is_told_nothing_and_no_more_is_read",
    ),
    Mutant(
        "Z16", "a fragment that has not come in full is not counted twice", FRAMES, "self._fragments += 1", "self._fragments += 2",
        "tests/unit/test_frames.py::test_what_another_implementation_sends_is_read_in_any_packets",
    ),
    Mutant(
        "Z17", "a frame is refused by its size before it has come", FRAMES,
        "len(self._message) + size > self._max_bytes:", "len(self._message) + size > self._max_bytes and len(data) >= size:",
        "tests/unit/test_frames.py::test_a_message_of_the_limit_is_read_and_a_frame_over_it_is_refused_by_its_head",
    ),
    Mutant(
        "Z18", "the reserve makes room", POPULATION, "next(iter(self._reserve)).abort()", "pass",
        f"{POPULATED}::test_beyond_the_limit_a_reserve_answers_what_costs_nothing_and_its_oldest_makes_room",
    ),
    Mutant(
        "Z19", "an address gets its share back", POPULATION, "self._of_address[address] -= 1", "pass",
        f"{POPULATED}::test_an_address_has_a_share_of_all_connections_and_gets_it_back",
    ),
]  # fmt: skip
