"""The texts of the panels in the reader's language; all of them are in words.toml."""

import tomllib
from functools import cache
from pathlib import Path

from ftlab import errors


@cache
def texts() -> dict[str, dict[str, str]]:
    """Return the table: name -> {"en", "zh"} and, where there is a tooltip, {"tip_en", "tip_zh"}."""
    return tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


class Words:
    """The table in one language.

    Args:
        lang: "en" or "zh"; None takes FTLAB_LANG, English without it.
    Raises:
        LabError: a language that the table does not have.
    """

    def __init__(self, lang: str | None = None) -> None:
        self.lang = lang or errors.language()
        if self.lang not in errors.LANGUAGES:
            raise errors.fail("board_language", where="lang", lang=self.lang, known=", ".join(errors.LANGUAGES))

    def __call__(self, name: str, /, **values: object) -> str:
        """Return the text `name`, its placeholders filled."""
        return texts()[name][self.lang].format(**errors.with_counts(values))

    def tip(self, name: str) -> str:
        """Return the tooltip of `name`."""
        return texts()[name][f"tip_{self.lang}"]
