"""What is promised about hosts, proxies, pages, and signals at the start."""

from tests.mutants import Mutant

HOSTS = "tests/integration/test_hosts.py"
PROXIES = "tests/integration/test_proxies.py"
STARTING = "tests/integration/test_stopped_while_starting.py::test_a_process_without_its_store_ends_when_it_is_told_to"

EDGE: list[Mutant] = [
    Mutant(
        "E01",
        "Without keys, no route answers for the name of another site.",
        "api/millstream_api/hosts.py",
        "    if not settings.hosts and (settings.api_keys_file or settings.insecure):",
        "    if not settings.hosts:",
        f"{HOSTS}::test_no_route_answers_for_the_name_of_another_site",
    ),
    Mutant(
        "E02",
        "Files and uploads do not answer for the name of another site either.",
        "api/millstream_api/app.py",
        "below_prefix(answering_hosts(whole, settings), ",
        "below_prefix(whole, ",
        f"{HOSTS}::test_no_route_answers_for_the_name_of_another_site",
    ),
    Mutant(
        "E03",
        "A name that only ends or begins like a good one is another's.",
        "api/millstream_api/hosts.py",
        "HOST.fullmatch(header)",
        "HOST.match(header)",
        "tests/unit/test_hosts.py::test_every_other_host_is_not",
    ),
    Mutant(
        "E04",
        "A prefix that the proxy passes on is taken off.",
        "api/millstream_api/prefix.py",
        'path.startswith(raw + b"/"):',
        "False:",
        f"{PROXIES}::test_location_and_link_lead_to_where_they_say",
    ),
    Mutant(
        "E05",
        "Problems name paths as the client sees them.",
        "api/millstream_api/prefix.py",
        '("type", "instance")',
        '("instance",)',
        f"{PROXIES}::test_problems_name_paths_as_the_client_sees_them",
    ),
    Mutant(
        "E06",
        "Forwarded headers are believed from trusted addresses only.",
        "api/millstream_api/app.py",
        "ProxyHeadersMiddleware(app_or_socket, settings.trusted_proxies)",
        'ProxyHeadersMiddleware(app_or_socket, "*")',
        f"{PROXIES}::test_forwarded_headers_are_believed_from_trusted_addresses",
    ),
    Mutant(
        "E07",
        "Nothing is redirected to what a client calls this server.",
        "api/millstream_api/app.py",
        ", redirect_slashes=False",
        "",
        "tests/integration/test_http_errors.py::test_no_path_leads_to_where_the_host_header_says",
    ),
    Mutant(
        "E08",
        "No other page may frame ours.",
        "api/millstream_api/published/specifications.py",
        "; frame-ancestors 'none'",
        "",
        "tests/integration/test_specifications.py::test_a_page_runs_only_what_is_its_own_and_is_framed_by_none",
    ),
    Mutant(
        "E09",
        "An API that still waits for its store ends when it is told to.",
        "api/millstream_api/server.py",
        "        if not self.started:  # it holds nothing yet, and has no client",
        "        if False:",
        STARTING,
    ),
    Mutant(
        "E10",
        "A worker that still waits for its store ends when it is told to.",
        "worker/millstream_worker/app.py",
        "        if engine is None:",
        "        if False:",
        STARTING,
    ),
    Mutant(
        "E11",
        "`millstream up` ends when it is told to before all is up.",
        "shared/millstream/command/main.py",
        "        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)",
        "        await asyncio.wait([starting])",
        STARTING,
    ),
]
