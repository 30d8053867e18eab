"""Bad input under load: each gets its 4xx, and the others' answers stay word for word the same."""

import pytest

import bad_input

pytestmark = pytest.mark.gpu


def test_bad_input_disturbs_nobody(deterministic_server):
    bad_input.assert_nobody_is_disturbed(deterministic_server, lines=46, disconnects=1000)
