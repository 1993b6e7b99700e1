"""What the file tier promises."""

from tests.mutants import Mutant

UPLOADS, TUS, FILES_, BENEATH = (
    "api/millstream_api/files/uploads.py",
    "api/millstream_api/files/tus.py",
    "api/millstream_api/files/app.py",
    "shared/millstream/confined_fs.py",
)
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
        UPLOADS, "await asyncio.to_thread(temporary.publish, headers)", "temporary.publish(headers)", ON_DISK,
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
        UPLOADS, "except FileNotFoundError:\n                raise",
        "except ZeroDivisionError:\n                raise", TURN,
    ),
    Mutant(
        "U15", "who never finds the directory it made gives up",
        UPLOADS, "for _ in range(ATTEMPTS):", "while True:",
        f"{DISK}::test_who_never_finds_the_directory_it_has_made_gives_up",
    ),
    Mutant(
        "V08", "a resumable upload is on the disk before it gets its name",
        TUS, "        os.fsync(file)\n", "", ON_DISK,
    ),
    Mutant(
        "V08b", "the name of a resumable upload is on the disk before that is answered",
        TUS, "                os.fsync(temporary.directory)\n", "", ON_DISK,
    ),
    Mutant(
        "V09", "a resumable upload waits for its turn in the directory",
        TUS, "            with locked(temporary.directory):", "            if True:", TURN,
    ),
    Mutant(
        "V10", "507 when the disk refuses to publish a resumable upload",
        TUS, "with disk_errors():\n                    await asyncio.to_thread(self._p",
        "if True:\n                    await asyncio.to_thread(self._p", FULL,
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
        UPLOADS, "if len(buffered) >= BLOCK or not message", "if not message",
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
        TUS, "not (whole and checksum[0].digest() == checksum[1])", "whole and checksum[0].digest() != checksum[1]",
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
        "api/millstream_api/files/digests.py", "if len(self._cache) > CACHED:", "if False:", DIGESTS,
    ),
    Mutant(
        "G02", "the event loop waits for no digest",
        "api/millstream_api/files/digests.py", "asyncio.to_thread(_compute, os.dup(file))",
        "asyncio.sleep(0, _compute(os.dup(file)))", DIGESTS,
    ),
    Mutant(
        "G03", "the digests that are kept are those asked for last",
        "api/millstream_api/files/digests.py", "            self._cache.move_to_end(state)\n", "", DIGESTS,
    ),
]  # fmt: skip
