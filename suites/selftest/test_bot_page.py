"""docs/bot.md tells the truth: its policy can be read, and it has every command and every key."""

from __future__ import annotations

import re
from pathlib import Path

from vlm_ci.bot import claims, policy
from vlm_ci.bot.commands import FORMS
from vlm_ci.cli.bot import bot

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "bot.md").read_text()
MEANINGS = {"eyes": "👀", "rocket": "🚀", "-1": "👎", "confused": "😕"}


def test_the_policy_on_the_page_and_this_repositorys_own_are_policies():
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.M)
    read = policy.read(shown.encode(), "docs/bot.md")
    assert read.budget == policy.Budget()  # the page says that these are the defaults
    own = ROOT / policy.PATH
    assert policy.read(own.read_bytes(), policy.PATH).rules("rerun-failed-ci")


def test_the_page_has_every_command_and_option():
    for name, form in FORMS.items():
        (row,) = re.findall(rf"^\| `/{name}\b([^`]*)` \|", PAGE, re.M)
        assert form.argument in row
        for option in form.options:
            assert f"[{option}]" in row, f"{name} {option}"


def test_the_page_has_every_key_of_the_policy_and_every_option():
    for field in (*policy.Policy.__struct_fields__, *policy.Rule.__struct_fields__):
        assert re.search(rf"`(\[\[?)?{field}(\]\]?)?`", PAGE), field
    for option in bot.params:
        assert f"`{option.opts[0]}" in PAGE
    for reaction in (claims.CLAIM, *claims.FINAL):
        assert f"| {MEANINGS[reaction]} |" in PAGE
