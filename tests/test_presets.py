"""Presets: chosen by what is there, overridable, never beyond it."""

import pytest

from bat_ui.errors import UserError
from bat_ui.presets import LARGE, ONE_BY_ONE, PLENTY, SMALL, choose_preset

CARDS = {6.0: "8", 8.3: "8", 11.5: "12", 12.6: "12", 15.8: "16", 16.9: "16", 24.0: "24", 25.3: "24", 80.0: "plenty"}


@pytest.mark.parametrize("gigabytes, name", CARDS.items())
@pytest.mark.parametrize("family, table", [("sd15", SMALL), ("sdxl", LARGE)])
def test_a_card_gets_the_largest_preset_that_it_holds(gigabytes, name, family, table):
    assert choose_preset(family, "auto", gigabytes) == table[name]


def test_a_name_overrides_what_is_there():
    assert choose_preset("sdxl", "8", 80.0) == LARGE["8"] and choose_preset("sd21", "16", None) == SMALL["16"]


def test_stickers_need_no_saving_and_a_processor_takes_photographs_one_by_one():
    assert choose_preset("sticker", "8", 4.0) == PLENTY and choose_preset("sdxl", "auto", None) == ONE_BY_ONE


def test_less_memory_never_means_more_pictures_at_once():
    for table in (SMALL, LARGE):
        order = [table[name] for name in ("8", "12", "16", "24", "plenty")]
        assert [p.rows for p in order] == sorted(p.rows for p in order)
        assert [p.offload for p in order] == sorted((p.offload for p in order), reverse=True)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match='"10"'):
        choose_preset("sd15", "10")
