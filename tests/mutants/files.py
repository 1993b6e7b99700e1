"""What the file tier promises."""

from tests.mutants import Mutant

UPLOADS, TUS, UNFINISHED, FILES_, DIGESTS_, SHOWN, BENEATH = (
    "api/millstream_api/files/uploads.py",
    "api/millstream_api/files/tus.py",
    "api/millstream_api/files/unfinished.py",
    "api/millstream_api/files/app.py",
    "api/millstream_api/files/digests.py",
    "api/millstream_api/files/representations.py",
    "shared/millstream/confined_fs.py",
)
INCOMPLETE, APART = "tests/integration/test_files_incomplete.py", "tests/integration/test_files_apart.py"
COMPRESSED, SHOWN_TESTS = "tests/integration/test_files_compressed.py", "tests/integration/test_files_shown.py"
DISK, SETTLE = "tests/integration/test_disk.py", "tests/integration/test_files_settle.py"
BOUNDS = "tests/integration/test_file_bounds.py"
COLD = "tests/unit/test_pagecache.py::test_what_is_not_in_the_page_cache_is_read_apart_from_the_event_loop"
DIGESTS = (
    "tests/unit/test_digests.py::test_a_digest_is_computed_in_a_thread_and_again_only_when_others_were_asked_for_since"
)
ON_DISK = f"{DISK}::test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_that_is_answered"
FULL = f"{DISK}::test_a_disk_a_quota_or_a_file_that_may_not_grow_is_told_as_full"
TURN = f"{DISK}::test_who_changes_a_directory_waits_for_its_turn_and_looks_again_when_it_has_come"

FILES: list[Mutant] = [
    Mutant(
        "U01", "a file is on the disk before it gets its name",
        UPLOADS, "        os.fsync(self._file)\n", "", ON_DISK,
    ),
    Mutant(
        "U02", "a name is on the disk before the upload is answered",
        UPLOADS, "            os.fsync(self.directory)\n", "", ON_DISK,
    ),
    Mutant(
        "U02b", "the event loop waits for no disk when a file is published",
        UPLOADS, "await self.threads.run(temporary.publish, headers)", "temporary.publish(headers)", ON_DISK,
    ),
    Mutant(
        "U11", "507 for a quota",
        UPLOADS, "(errno.ENOSPC, errno.EDQUOT, errno.EFBIG)", "(errno.ENOSPC, errno.EFBIG)", FULL,
    ),
    Mutant(
        "U11b", "507 for a file that may not grow",
        UPLOADS, "(errno.ENOSPC, errno.EDQUOT, errno.EFBIG)", "(errno.ENOSPC, errno.EDQUOT)", FULL,
    ),
    Mutant(
        "U11c", "507 when the disk says only at the end that it is full",
        UPLOADS, "with disk_errors():\n                status, etag", "if True:\n                status, etag", FULL,
    ),
    Mutant(
        "U12", "who publishes waits for its turn in the directory",
        UPLOADS, "        with locked(self.directory):", "        if True:", TURN,
    ),
    Mutant(
        "U13", "who removes waits for its turn in the directory",
        UPLOADS, "as (directory, name), locked(directory):", "as (directory, name):", TURN,
    ),
    Mutant(
        "U14", "what another has removed meanwhile is 404",
        UPLOADS, "with disk_errors():  # another", "if True:  # another", TURN,
    ),
    Mutant(
        "U15", "who never finds the directory it made gives up",
        UPLOADS, "for _ in range(ATTEMPTS):", "while True:",
        f"{DISK}::test_who_never_finds_the_directory_it_has_made_gives_up",
    ),
    Mutant(
        "V08", "a resumable upload is on the disk before it gets its name",
        UNFINISHED, "        os.fsync(file)\n", "", ON_DISK,
    ),
    Mutant(
        "V08b", "the name of a resumable upload is on the disk before that is answered",
        UNFINISHED, "                os.fsync(temporary.directory)\n", "", ON_DISK,
    ),
    Mutant(
        "V09", "a resumable upload waits for its turn in the directory",
        UNFINISHED, "            with locked(temporary.directory):", "            if True:", TURN,
    ),
    Mutant(
        "V10", "507 when the disk refuses to publish a resumable upload",
        TUS, "with disk_errors():", "if True:", FULL,
    ),
    Mutant(
        "F01", "a file that has just changed is looked at a moment later",
        FILES_, "st_ctime_ns < SETTLE_NS", "st_ctime_ns < 0",
        f"{SETTLE}::test_a_change_in_the_same_moment_as_the_one_before_is_waited_for",
    ),
    Mutant(
        "F02", "that moment is longer than a tick of the clock of files",
        FILES_, "SETTLE_NS = 20_000_000", "SETTLE_NS = 200_000",
        f"{SETTLE}::test_the_wait_is_longer_than_the_clock_of_file_systems_takes_to_move_on",
    ),
    Mutant(
        "F03", "a cancelled request frees its file",
        FILES_, "                os.close(opened.file)\n                raise", "                raise",
        f"{SETTLE}::test_a_request_that_is_cancelled_while_it_waits_frees_its_file",
    ),
    Mutant(
        "S01f", "a client is slow, not gone, as long as it takes something in each time limit",
        "api/millstream_api/wire/backpressure.py", "if now >= before:", "if True:",
        "tests/integration/test_slow_clients.py::test_a_client_that_reads_a_little_now_and_then_gets_everything",
    ),
    Mutant(
        "S02f", "what the kernel still holds for a client tells whether it takes something",
        "api/millstream_api/wire/backpressure.py",
        "connection.get_write_buffer_size() + _unacknowledged(fd)", "connection.get_write_buffer_size()",
        "tests/integration/test_slow_clients.py::test_a_client_that_reads_a_little_now_and_then_gets_everything",
    ),
    Mutant(
        "S03f", "a client that reads nothing has all of the time limit",
        "api/millstream_api/wire/backpressure.py", "timeout=stall_s))[0]", "timeout=stall_s / 4))[0]",
        "tests/integration/test_zerocopy.py::test_plain_connections_are_zero_copy",
    ),
    Mutant(
        "U16", "an upload is written while it is received, and not held in memory",
        UPLOADS, "if len(buffered) >= BLOCK or not more", "if not more",
        f"{BOUNDS}::test_an_upload_is_written_as_it_comes",
    ),
    Mutant(
        "U17", "an upload closes its file",
        UPLOADS, "        os.close(self._file)\n", "", f"{BOUNDS}::test_whatever_is_asked_for_no_file_stays_open",
    ),
    Mutant(
        "U18", "who removes a file closes it",
        UPLOADS, "os.close(self._directory.open(path).file)", "self._directory.open(path)",
        f"{BOUNDS}::test_whatever_is_asked_for_no_file_stays_open",
    ),
    Mutant(
        "F04", "of a file and its compressed sibling, the one that is not sent is closed",
        FILES_, "            os.close(plain.file if better else compressed.file)\n", "",
        f"{BOUNDS}::test_whatever_is_asked_for_no_file_stays_open",
    ),
    Mutant(
        "F05", "a large file is followed piece by piece",
        FILES_, "min(found.st_size - offset, 256 * 1024)", "found.st_size - offset",
        f"{BOUNDS}::test_a_large_file_is_followed_piece_by_piece",
    ),
    Mutant(
        "V11", "what breaks before its checksum can be checked is not kept",
        TUS, "                await self._run(self._disk.mark_unchecked, upload, at)\n", "                pass\n",
        "tests/integration/test_tus.py::test_what_breaks_before_its_checksum_can_be_checked_is_not_kept",
    ),
    Mutant(
        "P02f", "a read that is tried at once waits for no disk",
        "api/millstream_api/wire/pagecache.py", "[buffer], offset, _NOWAIT)", "[buffer], offset, 0)", COLD,
    ),
    Mutant(
        "P03", "what a disk must be waited for is read in a thread",
        "api/millstream_api/wire/pagecache.py", "await asyncio.to_thread(os.pread, file, span.length, span.start)",
        "os.pread(file, span.length, span.start)", COLD,
    ),
    Mutant(
        "B01", "a kernel without openat2 serves the same",
        BENEATH, "    except OSError:\n        return False", "    except ZeroDivisionError:\n        return False",
        "tests/unit/test_confined_fs.py::test_where_there_is_no_openat2_the_same_is_served",
    ),
    Mutant(
        "B02", "a directory that was made for a file is on the disk",
        BENEATH, "                os.fsync(fd)\n", "",
        f"{DISK}::test_each_directory_that_was_made_for_a_file_is_on_the_disk_too",
    ),
    Mutant(
        "U19", "what was deleted does not come back",
        UPLOADS, "            os.fsync(directory)\n", "",
        f"{DISK}::test_a_file_that_was_deleted_does_not_come_back_after_a_power_cut",
    ),
    Mutant(
        "X01", "the protocol lists each close code",
        "docs/protocol.md", "| 1009 | a message over the limit (`MILLSTREAM_MAX_BODY_BYTES`) |\n", "",
        "tests/unit/test_doc_pages.py::test_each_close_code_has_a_row",
    ),
    Mutant(
        "F06", "a long listing is sent piece by piece",
        FILES_, "islice(found, 500)", "islice(found, 5_000_000)",
        f"{BOUNDS}::test_a_long_listing_is_sent_piece_by_piece",
    ),
    Mutant(
        "G01", "so many digests are kept",
        DIGESTS_, "if len(self._cache) > CACHED:", "if False:", DIGESTS,
    ),
    Mutant(
        "G02", "the event loop waits for no digest",
        DIGESTS_, "await self._threads.run(_sha256, file, state, abandoned)", "_sha256(file, state, abandoned)",
        DIGESTS,
    ),
    Mutant(
        "G03", "the digests that are kept are those asked for last",
        DIGESTS_, "            self._cache.move_to_end(state)\n", "", DIGESTS,
    ),
    Mutant(
        "G04", "a digest that nobody waits for is given up",
        DIGESTS_, "if not block or abandoned.is_set():", "if not block:",
        f"{APART}::test_digests_that_clients_have_left_hold_up_nothing",
    ),
    Mutant(
        "G05", "a client that has left does not wait for its digest",
        FILES_, "await while_connected(request.receive, self._digests.sha256(file, state))",
        "await self._digests.sha256(file, state)",
        f"{APART}::test_digests_that_clients_have_left_hold_up_nothing",
    ),
    Mutant(
        "G06", "one computation serves all who wait for the same digest",
        DIGESTS_, "found = self._computing.get(state)", "found = None",
        "tests/unit/test_digests.py::"
        "test_those_who_ask_at_the_same_time_share_one_computation_whoever_of_them_leaves",
    ),
    Mutant(
        "G07", "a file that has changed meanwhile has no digest",
        DIGESTS_, "if State.of(os.fstat(file)) == state else None", "if True else None",
        "tests/unit/test_digests.py::test_a_file_that_changes_meanwhile_has_no_digest_and_none_is_kept",
    ),
    Mutant(
        "G08", "a digest is of the bytes that are sent",
        DIGESTS_, "while offset < state.size:", "while True:",
        "tests/unit/test_digests.py::test_a_digest_is_of_the_bytes_that_its_state_has",
    ),
    Mutant(
        "U20", "a body that ends early is no upload",
        UPLOADS, "if length is not None and received < length:", "if False:",
        f"{INCOMPLETE}::test_a_put_of_another_length_than_announced_is_refused_and_leaves_nothing",
    ),
    Mutant(
        "U21", "a body that ends late is no upload",
        UPLOADS, "if length is not None and received > length:", "if False:",
        f"{INCOMPLETE}::test_a_put_of_another_length_than_announced_is_refused_and_leaves_nothing",
    ),
    Mutant(
        "V12", "a part that ends early publishes nothing",
        TUS, "body_blocks(receive, announced)", "body_blocks(receive, None)",
        f"{INCOMPLETE}::test_a_part_with_another_length_than_announced_is_refused_and_publishes_nothing",
    ),
    Mutant(
        "F07", "ranges are those of the file, not of its compressed sibling",
        FILES_, 'if "range" not in request.headers and (', "if (",
        f"{COMPRESSED}::test_clients_that_take_gzip_get_a_file_range_by_range",
    ),
    Mutant(
        "F08", "caches cut no ranges out of a compressed sibling",
        SHOWN, '"Accept-Encoding, Range" if coding else ', "",
        f"{COMPRESSED}::test_compressed_siblings_by_what_the_client_takes",
    ),
    Mutant(
        "F09", "the length of a compressed sibling is not taken for that of the file",
        SHOWN, "if coding else whole", "if False else whole",
        f"{COMPRESSED}::test_the_length_of_a_compressed_sibling_is_not_told_for_that_of_the_file",
    ),
    Mutant(
        "F10", "nothing of an uploader's runs in our origin",
        SHOWN, '        "Content-Security-Policy": "sandbox",\n', "",
        f"{SHOWN_TESTS}::test_a_browser_may_show_few_types_and_runs_nothing_of_any",
    ),
    Mutant(
        "F11", "what is not known to be harmless is downloaded",
        SHOWN, 'else "attachment"', 'else "inline"',
        f"{SHOWN_TESTS}::test_a_browser_may_show_few_types_and_runs_nothing_of_any",
    ),
    Mutant(
        "F12", "a header that takes long to parse is refused",
        "api/millstream_api/files/requests.py", "        if len(text) > most:", "        if False:",
        f"{BOUNDS}::test_a_header_too_long_to_be_read_at_once_is_refused",
    ),
    Mutant(
        "F13", "who is cancelled waits for its thread to end",
        "api/millstream_api/files/threads.py", "        await asyncio.wait({working})\n", "        await asyncio.sleep(0)\n",
        "tests/unit/test_file_threads.py::test_who_is_cancelled_waits_for_the_end_of_the_work_and_undoes_it",
    ),
    Mutant(
        "F14", "listings have threads of their own",
        FILES_, "await self._listing.run(_next_entries, found)", "await asyncio.to_thread(_next_entries, found)",
        f"{APART}::test_work_of_one_kind_that_takes_long_holds_up_no_other",
    ),
    Mutant(
        "B04", "a large directory is sorted run by run",
        BENEATH, "islice(wanted, SORTED_RUN)", "wanted",
        "tests/unit/test_confined_fs.py::test_a_large_directory_is_sorted_run_by_run",
    ),
    Mutant(
        "F15", "of a long Accept or Accept-Encoding the first items count",
        "api/millstream_api/negotiation.py", '.split(",", MAX_ITEMS)[:MAX_ITEMS]', '.split(",")',
        "tests/unit/test_negotiation.py::test_of_a_long_header_the_first_items_count",
    ),
    Mutant(
        "B05", "listings at the same time each find everything",
        BENEATH, "self._walk(top, ", "self._walk(self._fd, ",
        "tests/unit/test_confined_fs.py::test_walks_at_the_same_time_each_find_everything",
    ),
]  # fmt: skip
