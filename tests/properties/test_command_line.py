"""Options on a command line: any text comes back through a shell and Hydra."""

from __future__ import annotations

import shlex

from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from torchrl_genpo.config.command_line import as_word
from torchrl_genpo.config.compose import compose_config

LETTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\\${}'\"=,a ")


@given(path=st.text(LETTERS, min_size=1))
def test_any_path_comes_back_through_a_shell_and_hydra(path):
    cfg = compose_config(shlex.split(as_word("resume", path)))
    assert OmegaConf.to_container(cfg, resolve=True)["resume"] == path
