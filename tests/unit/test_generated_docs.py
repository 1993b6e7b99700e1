"""What the docs say of tables and commands is what they say themselves; `make docs` writes it."""

import pytest

from tests.generated_docs import PART, PARTS, pages

PAGES = list(pages())


@pytest.mark.parametrize(("path", "text", "wanted"), PAGES, ids=[path.name for path, _, _ in PAGES])
def test_a_page_has_what_the_tables_and_commands_say(path: object, text: str, wanted: str) -> None:
    assert text == wanted, f"{path}: run make docs"


def test_every_part_stands_in_some_page() -> None:
    assert {part[2] for _, text, _ in PAGES for part in PART.finditer(text)} == set(PARTS)
